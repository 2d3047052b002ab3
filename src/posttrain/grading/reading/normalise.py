"""One way to write an answer: unicode, blanks, sizes and styles of LaTeX, numbers. Meaning and units stay."""

import re
import unicodedata
from fractions import Fraction

from posttrain.grading.reading.environments import flatten
from posttrain.grading.reading.plain_text import to_latex
from posttrain.grading.values.unit_table import LETTERS

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
SUPERSCRIPT = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
CHARACTERS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "∞": r"\infty ", "π": r"\pi ",
    "°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "±": r"\pm ", "⁄": "/", "∈": r"\in ", "θ": r"\theta ",
    "≠": r"\ne ", "≈": r"\approx ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "∠": r"\angle ",
    "…": r"\ldots ", "、": ", ",
    "，": ", ", "；": "; ", "。": ".", "．": ".", "或": " or ", "和": " and ", "与": " and ",
    "∖": r"\setminus ", "′": "'", "⟨": "(", "⟩": ")",
}  # fmt: skip
ROOT = re.compile(r"√ ?(\d+|[a-z]|\([^()]*+\))")
BLANKS = re.compile(r"\s+")
BLANK = re.compile(r"(?<![0-9]) | (?![0-9])")
COMMAND_BLANK = re.compile(r"(\\[A-Za-z]+) (?=[A-Za-z])")
SPACES = re.compile(
    r"(?<!\\)\\[,;:! ]|\\qquad|\\quad|~|(?<!\\)\\$|\\[hv]space\*? ?\{[^{}]*+\}|\\(?:thin|med|thick)space"
)
THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|, ?\\!|\\[,!:; ]|~|[\u2009\u00a0\u202f]) ?(?=\d{3}(?!\d))")
DROPPED = re.compile(
    r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\textstyle|\\limits|\\[bB]igg?[lr]?(?![a-z])"
    r"|\\color ?\{[^{}]*+\}|\\checkmark|\\blacksquare|\\square(?![a-z])"
)
MATHEMATICS = re.compile(r"\\(?:mathbf|boldsymbol|mathit|mathsf|bf|bm|underline) ?\{([^{}]*+)\}")
TEXTS = re.compile(r"\\(?:mathrm|mbox|textbf|textit|emph|textrm|textnormal|textup|textsf|operatorname) ?\{([^{}]*+)\}")
ANSWER_LABEL = re.compile(
    r"\\text ?\{ ?(?:the )?(?:final )?answer(?: is)? ?[:=]? ?\}|^ ?(?:the )?(?:final )?answer ?(?:[:=]|is) ?", re.I
)
VALUE_IN_TEXT = re.compile(r"\\text ?\{ ?([+-]?\d[^{}]*+)\}")
DELIMITERS = re.compile(r"\\?\$|€|£|¥|₹|(?<!\\)\\[()\[\]]|\\pounds(?![a-z])|`")
CURRENCY = re.compile(r"([+-]?) ?(\\?\$|€|£|¥) ?([+-]?[\d.,]*\d)")
CURRENCIES = {"$": "dollars", "€": "euros", "£": "pounds sterling", "¥": "yuan"}
UNPRINTED_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
NUMBER = r"[+-]?(?:\d[\d,./]*+(?: \d[\d,./]*+)*|\\frac\{\d++\}\{\d++\})"
SCALED = re.compile(
    rf"^({NUMBER})(?: ?\\text ?\{{ ?| )(hundred|thousand|million|billion|trillion|dozen)\b ?([A-Za-z .]*+)\}}?$", re.I
)
MAX_STYLES = 8  # within another
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
REALS = re.compile(r"(^|\\in ?)\\mathbb ?(?:R|\{R\})$")
EMPTY = re.compile(r"^(?:\\varnothing|\\\{ ?\\\})$")
SPACED_THOUSANDS = re.compile(r"^[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?$")
PERCENT = re.compile(
    r"(?<=[\d}]) ?(?:\\text ?\{ ?(?:percent(?:age)?|pct|per cent)\.? ?\}|(?:percent(?:age)?|pct|per cent)\.?$)", re.I
)
ORDINAL = re.compile(
    r"(?<=\d)(?:\^ ?\{? ?(?:\\text ?\{ ?)?(?:st|nd|rd|th) ?\}? ?\}?|\\text ?\{(?:st|nd|rd|th)\}"
    r"|(?:st|nd|rd|th)(?: [A-Za-z]+)?)$"
)
DOUBLED = re.compile(r"\\\\(?=[A-Za-z]{2}|[(){}\[\]])")  # a backslash that was escaped once too often
WHOLE_THOUSANDS = re.compile(r"^[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?:\\?%)?$")
UNIT_THOUSANDS = re.compile(r"^[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?= ?\\text| [A-Za-z]{2})")
LISTED_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?=, | (?:and|or) |$)")
SEPARATOR = re.compile(r"\\text ?\{ ?(and|or) ?\}")
GLUED_SEPARATOR = re.compile(r"(?<=[\d)}]) ?(and|or) ?(?=[\d(\\-]|[A-Za-z](?:\([a-z]\))? ?=)")
DISJUNCTION = re.compile(r"\\(?:lor|vee)(?![a-z])")
CONJUNCTION = re.compile(r"\\(?:land|wedge)(?![a-z])")
CONDITION = re.compile(  # that holds by itself, as in: 5 for n > 2; not: 5 for odd n
    r",? ?\\text ?\{ ?(?:for|where|with)\b(?:(?!\b(?:and|or|odd|even|if|when)\b)[^{},;])*\}"
    r"(?:(?!\\text|\\\\|\b(?:and|or)\b)[^,;])*$"
)
HOLDS = re.compile(r"[<>=]|\\(?:in|ne|le|ge|neq|leq|geq)(?![a-z])|\b(?:all|any|every|some|integers?|real|constants?)\b")
MIXED = re.compile(r"(?<![\d.}\w^])(\d+) ?\\frac\{(\d+)\}\{(\d+)\}|(?<![\d./\w^])(\d+) (\d+)/(\d+)(?![\d/])")
REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)(?:\\overline ?\{?(\d+)\}?|((?:\\dot ?\{?\d\}?)+)|\((\d+)\)(?![\d^]))")
DOTTED = re.compile(r"(?<![\d.])(\d*)\.(\d*)(?: ?(?:\\ldots|\\dots|\\cdots|\.\.\.))$")
PERIOD = re.compile(r"^(\d{0,9}?)(?:(\d)\2\2+|(\d{2,3}?)\3+)$")
EXPONENT = re.compile(r"(?<![\w.])(\d++(?:\.\d*+)?|\.\d++)[eE]([+-]?\d+)(?!\w)")
DECIMAL_EXPONENT = re.compile(r"\^ ?\{ ?(-?\d{0,9}\.\d{1,9}) ?\}")
FRACTION = re.compile(r"\\(?:[dtc]frac|nicefrac|sfrac)(?![a-z])")
ARGUMENT = r"(?:\d|(?<!\\)[a-z]|\\(?:pi|theta|alpha|beta|phi)(?![a-z]))"
BOTH_DIGITS = re.compile(rf"\\frac ?({ARGUMENT}) ?({ARGUMENT})(?![a-z])")
FIRST_DIGIT = re.compile(rf"\\frac ?({ARGUMENT}) ?\{{")
SECOND_DIGIT = re.compile(rf"(\\frac ?\{{[^{{}}]*+\}}) ?({ARGUMENT})")
BARE_ROOT = re.compile(r"\\sqrt ?(\d+|[a-z]|\\pi)(?![a-z])")
LESS_EQUAL = re.compile(r"\\le(?:q|qslant)(?![a-z])|\\le(?=[a-z](?![a-z]))")
GREATER_EQUAL = re.compile(r"\\ge(?:q|qslant)(?![a-z])|\\ge(?=[a-z](?![a-z]))")
RELATIONS = ((re.compile(r"\\lt(?![a-z])"), "<"), (re.compile(r"\\gt(?![a-z])"), ">"),
             (re.compile(r"\\neq(?![a-z])|!="), r"\\ne "), (re.compile(r"<="), r"\\le "),
             (re.compile(r">="), r"\\ge "))  # fmt: skip
DEGREE = re.compile(r"\\degrees?(?![a-z])|\^ ?\{ ?\\circ ?\}")
BRACKETS = re.compile(r"\\(langle|rangle|lbrace|rbrace|lvert|rvert|lbrack|rbrack)(?![a-z]) ?")
BRACKET = {"langle": "(", "rangle": ")", "lbrace": "\\{", "rbrace": "\\}", "lvert": "|", "rvert": "|", "lbrack": "[",
           "rbrack": "]"}  # fmt: skip


def normalise(text: str) -> str:
    """The answer in its one form; idempotent in what `exact` and `symbolic` look at."""
    text = BLANKS.sub(" ", _unicode(text)).strip().replace("...", r"\ldots ")
    if money := CURRENCY.fullmatch(text.rstrip(" .").removesuffix("\\")):
        sign, symbol, number = money.groups()
        text = f"{sign}{number.replace(',', '')}\\text{{ {CURRENCIES[symbol.removeprefix(chr(92))]}}}"
    if "\\" in text:
        text = _latex(text)
    text = BLANKS.sub(" ", DELIMITERS.sub(" ", text)).strip(" ,;:").rstrip(" .,;:")
    text = ANSWER_LABEL.sub("", text).strip()
    if braced := UNPRINTED_BRACES.fullmatch(text):  # {1,2}: braces that LaTeX does not print
        text = braced.group(1)
    for command, sign in RELATIONS:
        text = command.sub(sign, text)
    text = to_latex(GLUED_SEPARATOR.sub(r" \1 ", text))
    text = ORDINAL.sub("", PERCENT.sub(r"\\%", SCALED.sub(_scaled, text)))
    text = EMPTY.sub(r"\\emptyset", REALS.sub(r"\1(-\\infty,\\infty)", text))
    text = _numbers(text)
    return BLANKS.sub(" ", text).strip()


def squeezed(text: str) -> str:
    """Without the blanks that mean nothing: those between two digits, and behind a command, stay."""
    if " " not in text:
        return text
    return BLANK.sub("", COMMAND_BLANK.sub(r"\1{}", text)).replace("{}", " ")


def _latex(text: str) -> str:
    """LaTeX without what only the eye sees: environments, styles, sizes, blanks; separators and commands as one."""
    text = flatten(text)
    if "\\begin" not in text:  # where it ends a row
        text = DOUBLED.sub(r"\\", text)
    text = DROPPED.sub(" ", FRACTION.sub(r"\\frac", THOUSANDS.sub("", text)))
    for _ in range(MAX_STYLES):
        styled = TEXTS.sub(_styled, MATHEMATICS.sub(r"\1", text))
        if styled == text:
            break
        text = styled
    text = BLANKS.sub(" ", SPACES.sub(" ", text)).strip()
    text = BRACKETS.sub(lambda match: BRACKET[match.group(1)], DEGREE.sub(r"^\\circ", text))
    text = DISJUNCTION.sub(" or ", CONJUNCTION.sub(" and ", SEPARATOR.sub(r" \1 ", text)))
    text = _commands(CONDITION.sub(_condition, text))
    whole = VALUE_IN_TEXT.fullmatch(text.strip("$ ."))
    return whole.group(1) if whole else text


def _numbers(text: str) -> str:
    """Thousands, powers of ten, repeating decimals and mixed numbers in one form."""
    text = WHOLE_THOUSANDS.sub(_without_commas, text)  # inside brackets it may be a list
    text = UNIT_THOUSANDS.sub(_without_commas, text)
    text = SPACED_THOUSANDS.sub(lambda match: match.group().replace(" ", ""), text)
    if " " in text:
        text = LISTED_THOUSANDS.sub(_without_commas, text)
    text = EXPONENT.sub(r"\1\\times 10^{\2}", text)
    if "." in text:
        text = DECIMAL_EXPONENT.sub(_fractional, text)
        text = DOTTED.sub(_dotted, REPEATING.sub(_repeating, text))
    return MIXED.sub(_mixed, text)


def _unicode(text: str) -> str:
    """ASCII LaTeX for what NFKC would flatten into something else: superscripts, vulgar fractions, roots."""
    if text.isascii():
        return text
    text = SUPERSCRIPT.sub(lambda m: "^{" + m.group().translate(SUPERSCRIPTS) + "}", text)
    text = "".join(map(_vulgar, text))
    text = ROOT.sub(r"\\sqrt{\1}", text)
    for character, latex in CHARACTERS.items():
        text = text.replace(character, latex)
    return unicodedata.normalize("NFKC", text)


def _vulgar(character: str) -> str:
    if character < "\u00bc" or unicodedata.decomposition(character).split(" ")[0] != "<fraction>":
        return character
    numerator, _, denominator = unicodedata.normalize("NFKC", character).partition("⁄")
    return f"\\frac{{{numerator}}}{{{denominator}}}"


def _styled(match: re.Match[str]) -> str:
    """Text of several letters stays text; a letter does where it is a unit behind a number."""
    content, before = match.group(1), match.string[: match.start()].rstrip(" \\,~;:")
    letters = sum(character.isalpha() for character in content)
    unit = content.strip() in LETTERS and before[-1:].isdigit()
    degree = content.strip() in ("C", "F") and before.endswith(("circ", "circ}"))
    return f"\\text{{{content}}}" if letters > 1 or unit or degree else content


def _commands(text: str) -> str:
    """Braces around the arguments that LaTeX lets one leave out: \\frac12, \\frac{1}2, \\sqrt2."""
    text = FIRST_DIGIT.sub(r"\\frac{\1}{", BOTH_DIGITS.sub(r"\\frac{\1}{\2}", text))
    text = BARE_ROOT.sub(r"\\sqrt{\1}", SECOND_DIGIT.sub(r"\1{\2}", text))
    text = GREATER_EQUAL.sub(r"\\ge ", LESS_EQUAL.sub(r"\\le ", text))
    return text


def _condition(match: re.Match[str]) -> str:
    return "" if HOLDS.search(match.group()) else match.group()


def _fractional(match: re.Match[str]) -> str:
    """A decimal exponent as the fraction it is, which algebra keeps exact."""
    exponent = Fraction(match.group(1))
    return f"^{{{exponent.numerator}/{exponent.denominator}}}"


def _without_commas(match: re.Match[str]) -> str:
    return match.group().replace(",", "")


def _mixed(match: re.Match[str]) -> str:
    whole, numerator, denominator = (int(part) for part in match.groups() if part is not None)
    if denominator == 0 or numerator >= denominator:
        return match.group()
    return f"\\frac{{{whole * denominator + numerator}}}{{{denominator}}}"


def _scaled(match: re.Match[str]) -> str:
    number, scale, unit = match.groups()
    number = WHOLE_THOUSANDS.sub(_without_commas, number.strip())
    return f"{number}\\times {SCALES[scale.lower()]}" + (f"\\text{{ {unit.strip()}}}" if unit.strip() else "")


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, *repetends = match.groups()
    if fixed and repetends[-1]:  # 2.5(3) is a product
        return match.group()
    repetend = "".join(character for part in repetends if part for character in part if character.isdigit())
    scale = 10 ** len(fixed) * (10 ** len(repetend) - 1)
    value = int((whole or "0") + fixed + repetend) - int((whole or "0") + fixed)
    return f"\\frac{{{value}}}{{{scale}}}"


def _dotted(match: re.Match[str]) -> str:
    """0.333… as a third: a period that is written twice, of one digit three times."""
    whole, digits = match.group(1), match.group(2)
    found = PERIOD.match(digits)
    if found is None:
        return match.group()
    return REPEATING.sub(_repeating, f"{whole}.{found.group(1)}\\overline{{{found.group(2) or found.group(3)}}}")
