"""One way to write an answer: unicode, spacing, sizes and styles of LaTeX, units, mixed numbers. Meaning stays."""

import re
import unicodedata

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
CHARACTERS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "∞": r"\infty ", "π": r"\pi ",
    "°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "±": r"\pm ", "⁄": "/", "∈": r"\in ", "θ": r"\theta ",
}  # fmt: skip
SPACES = re.compile(r"(?<!\\)\\[,;:! ]|\\quad|\\qquad|~|\u2009|\u00a0|\u202f")
THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,\\!|\\[,!:; ]|~|[\u2009\u00a0\u202f])\s*(?=\d{3}(?!\d))")
DROPPED = re.compile(
    r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\textstyle|\\limits|\\[bB]igg?[lr]?(?![a-z])|\\color\{[^{}]*\}"
)
STYLES = re.compile(
    r"\\(?:mathbf|boldsymbol|mathrm|mathit|mathsf|bf|bm|textbf|textit|mbox|emph|textrm|textnormal)\s*\{([^{}]*)\}"
)
LABEL = re.compile(
    r"\\text\s*\{\s*(?:the\s+)?(?:final\s+)?answer\s*(?:is)?\s*[:=]?\s*\}|^\s*(?:final\s+)?answer\s*[:=]\s*", re.I
)
UNIT = re.compile(
    r"(?<=[\d})])\s*\\text\s*\{\s*(?!(?:hundred|thousand|[mb]illion|dozen)\b)"
    r"[A-Za-z][A-Za-z .]*(?:\^\{?\d\}?)?\s*\}(?:\s*\^\s*\{?[23]\}?)?$"
)
PLAIN_UNIT = re.compile(
    r"(?<=[\d})])\s+(?:dollars?|cents?|degrees?|units?|cm|mm|km|kg|hours?|minutes?|seconds?|days?|weeks?|months?|years?"
    r"|miles?|feet|inches|people|apples|eggs|points?|metres?|meters?)$",
    re.I,
)
NUMBER = r"[+-]?(?:\d(?:[\d,./]| (?=\d))*|\\frac\{\d+\}\{\d+\})"
UNIT_LETTER = re.compile(rf"^({NUMBER})\s+[mg]$")  # after letters it may be a variable
SCALED = re.compile(
    rf"^({NUMBER})\s*(?:\\text\s*\{{\s*)?\b(hundred|thousand|million|billion|dozen)\b\s*([A-Za-z .]*)\}}?$", re.I
)
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "dozen": 12}
REALS = re.compile(r"(^|\\in\s*)\\mathbb\s*(?:R|\{R\})$")
EMPTY = re.compile(r"^(?:\\varnothing|\\\{\s*\\\})$")
FUNCTION_NAME = re.compile(r"\\text\s*\{(sin|cos|tan|ln|log)\}|(?<![\\A-Za-z{])(sin|cos|tan|ln|log)(?![A-Za-z])")
SPACED_THOUSANDS = re.compile(r"^[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?$")
PERCENT = re.compile(r"(?<=\d)\s*(?:\\text\s*\{\s*)?(?:percent(?:age)?|pct)\.?\s*\}?$", re.I)
ORDINAL = re.compile(
    r"(?<=\d)(?:\^\s*\{?\s*(?:\\text\s*\{)?(?:st|nd|rd|th)\}?\s*\}?|(?:st|nd|rd|th)(?:\s+[A-Za-z]+)?)$"
)
DOUBLED = re.compile(r"\\\\(?=[A-Za-z]{2}|[(){}\[\]])")  # a backslash that was escaped once too often
MATRIX = re.compile(r"\\(begin|end)\{(?:[bB]matrix|smallmatrix|matrix)\}")  # determinants, vmatrix, are another thing
WHOLE_THOUSANDS = re.compile(r"^[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?:\\?%)?$")
SEPARATOR = re.compile(r"\\text\s*\{\s*(and|or)\s*\}")
DISJUNCTION = re.compile(r"\\(?:lor|vee)(?![a-z])")
CONDITION = re.compile(  # with no other value after it, as in: 5 for odd n, 7 for even n
    r",?\s*\\text\s*\{\s*(?:for|where|with)\b(?:(?!\b(?:and|or)\b)[^{},;])*\}(?:(?!\\text|\\\\|\b(?:and|or)\b)[^,;])*$"
)
MIXED = re.compile(r"(?<![\d.}\w^])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}|(?<![\d./\w^])(\d+)\s+(\d+)/(\d+)(?![\d/])")
REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\{?(\d+)\}?")
FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
EXPONENT = re.compile(r"(?<![\w.])(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)(?!\w)")


def normalise(text: str) -> str:
    """The answer in its one form; idempotent in what `exact` and `symbolic` look at."""
    text = MATRIX.sub(r"\\\1{pmatrix}", _unicode(text))
    if "\\begin" not in text:  # where it ends a row
        text = DOUBLED.sub(r"\\", text)
    text = THOUSANDS.sub("", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = DROPPED.sub(" ", text)
    text = LABEL.sub("", text)
    while (styled := STYLES.sub(r"\1", text)) != text:
        text = styled
    text = SPACES.sub(" ", text)
    text = re.sub(r"\\?\$|€|£|\\\(|\\\)|\\\[|\\\]|\\pounds", "", text)
    text = re.sub(r"(?:\s|\.)+$", "", text.strip())
    text = re.sub(r"^\{([^{}]*,[^{}]*)\}$", r"\1", text)  # {1,2}: braces that LaTeX does not print
    text = CONDITION.sub("", DISJUNCTION.sub(" or ", SEPARATOR.sub(r" \1 ", text))).strip()
    text = _commands(text)
    text = SCALED.sub(_scaled, UNIT_LETTER.sub(r"\1", text))
    text = ORDINAL.sub("", PLAIN_UNIT.sub("", UNIT.sub("", PERCENT.sub(r"\\%", text))))
    text = EMPTY.sub(r"\\emptyset", REALS.sub(r"\1(-\\infty,\\infty)", text))
    if not FUNCTION.search(text):  # a degree is a unit, but not inside a function
        text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?(?=\s*(?:[,)\]]|$))", "", text)
    text = WHOLE_THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)  # inside brackets it may be a list
    text = SPACED_THOUSANDS.sub(lambda match: match.group().replace(" ", ""), text)
    text = FUNCTION_NAME.sub(lambda match: f"\\{match.group(1) or match.group(2)} ", text)
    text = EXPONENT.sub(r"\1\\times 10^{\2}", text)
    text = REPEATING.sub(_repeating, text)
    text = MIXED.sub(_mixed, text)
    return re.sub(r"\s+", " ", text).strip()


def _unicode(text: str) -> str:
    """ASCII LaTeX for what NFKC would flatten into something else: superscripts, vulgar fractions, roots."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: "^{" + m.group().translate(SUPERSCRIPTS) + "}", text)
    text = "".join(_vulgar(character) for character in text)
    text = re.sub(r"√\s*(\d+|[a-z]|\([^()]*\))", r"\\sqrt{\1}", text)
    for character, latex in CHARACTERS.items():
        text = text.replace(character, latex)
    return unicodedata.normalize("NFKC", text)


def _vulgar(character: str) -> str:
    if character < "\u00bc" or unicodedata.decomposition(character).split(" ")[0] != "<fraction>":
        return character
    numerator, _, denominator = unicodedata.normalize("NFKC", character).partition("⁄")
    return f"\\frac{{{numerator}}}{{{denominator}}}"


def _commands(text: str) -> str:
    """Braces around the arguments that LaTeX lets one leave out: \\frac12, \\frac{1}2, \\sqrt2."""
    text = re.sub(r"\\frac\s*(\d|[a-z])\s*(\d|[a-z])(?![a-z])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d|[a-z])\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d|[a-z])", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\d+|[a-z])(?![a-z])", r"\\sqrt{\1}", text)
    text = text.replace("<=", "\\le ").replace(">=", "\\ge ")
    return re.sub(r"\\le(?:q|qslant)(?![a-z])", r"\\le", re.sub(r"\\ge(?:q|qslant)(?![a-z])", r"\\ge", text))


def _mixed(match: re.Match[str]) -> str:
    whole, numerator, denominator = (int(part) for part in match.groups() if part is not None)
    if denominator == 0 or numerator >= denominator:
        return match.group()
    return f"\\frac{{{whole * denominator + numerator}}}{{{denominator}}}"


def _scaled(match: re.Match[str]) -> str:
    number, scale, unit = match.groups()
    number = WHOLE_THOUSANDS.sub(lambda whole: whole.group().replace(",", ""), number.strip())
    return f"{number}\\times {SCALES[scale.lower()]}" + (f"\\text{{{unit}}}" if unit else "")


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, repetend = match.groups()
    scale = 10 ** len(fixed) * (10 ** len(repetend) - 1)
    value = int((whole or "0") + fixed + repetend) - int((whole or "0") + fixed)
    return f"\\frac{{{value}}}{{{scale}}}"
