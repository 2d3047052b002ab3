"""What a model wrote, for a page: escaped text, its LaTeX as MathML, which browsers draw without script or network."""

import html
import re
from xml.etree import ElementTree

from latex2mathml.converter import convert_to_element
from markupsafe import Markup, escape

LONGEST_TEXT = 6000  # characters of a completion on a page: half from its start, half from its end
LONGEST_FORMULA = 400  # characters; longer ones stay text
MOST_FORMULAS = 80  # of one text; the rest stays text
# Dollars hold a formula only as pandoc reads them: no space inside, no digit behind ("$5 and $10" is money).
FORMULA = re.compile(
    rf"\$\$(?P<display>[^$]{{1,{LONGEST_FORMULA}}})\$\$"
    rf"|\\\[(?P<bracket>[^\0]{{1,{LONGEST_FORMULA}}}?)\\\]"
    rf"|\\\((?P<paren>[^\0]{{1,{LONGEST_FORMULA}}}?)\\\)"
    rf"|(?<![\\$])\$(?P<dollar>[^\s$](?:[^$\n]{{0,{LONGEST_FORMULA}}}[^\s$\\])?)\$(?!\d)"
    r"|(?P<box>\\boxed\{(?:[^{}\n]|\{(?:[^{}\n]|\{[^{}\n]*\})*\})*\})"
)
TAGS = frozenset(
    {
        "math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msub", "msup", "msubsup",
        "munder", "mover", "munderover", "mtable", "mtr", "mtd", "mstyle", "menclose", "mpadded", "mphantom",
    }
)  # fmt: skip
ATTRIBUTES = frozenset(
    {
        "display", "mathvariant", "stretchy", "fence", "form", "separator", "linethickness", "columnalign", "accent",
        "rowspacing", "columnspacing", "accentunder", "largeop", "movablelimits", "notation", "displaystyle",
        "scriptlevel", "minsize", "maxsize", "width", "height", "depth", "lspace",
    }
)  # fmt: skip
CHILDREN = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def render_text(text: str) -> Markup:
    """`text` escaped, long ones without their middle, formulas as MathML where they parse; safe whatever it holds."""
    parts, start, formulas = [], 0, 0
    text = visible(shorten(text))
    for match in FORMULA.finditer(text):
        drawn = formula(match) if formulas < MOST_FORMULAS else None
        if drawn is not None:
            parts += [escape(text[start : match.start()]), drawn]
            start, formulas = match.end(), formulas + 1
    return Markup("").join([*parts, escape(text[start:])])


def shorten(text: str, longest: int = LONGEST_TEXT) -> str:
    """`text`, or its two ends and how much lies between them."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n\n[… {len(text) - 2 * half:,} characters left out …]\n\n{text[-half:]}"


def visible(text: str) -> str:
    """`text` with characters that HTML cannot hold as the replacement character."""
    return CONTROL.sub("\ufffd", text)


def formula(match: re.Match[str]) -> Markup | None:
    """MathML of a match of FORMULA, or None where it does not parse and is to be shown as it is."""
    kind = str(match.lastgroup)
    latex = match[kind]
    if len(latex) > LONGEST_FORMULA:
        return None
    try:
        element = convert_to_element(latex, display="block" if kind in ("display", "bracket") else "inline")
    # The library raises plain Exception subclasses of its own, StopIteration and RecursionError for what models write.
    except Exception:
        return None
    if not _clean(element):
        return None
    element.set("title", latex)
    return Markup(ElementTree.tostring(element, encoding="unicode"))


def _clean(element: ElementTree.Element) -> bool:
    """Keep known tags and attributes; False where one is unknown or a command was not understood.

    The library's own serialiser undoes the escaping of `<`, and it passes href and style on.
    """
    for node in element.iter():
        node.attrib = {name: value for name, value in node.attrib.items() if name in ATTRIBUTES}
        node.text = html.unescape(node.text or "")
        node.tail = None
        wanted = CHILDREN.get(node.tag, len(node))  # the library draws half a fraction where one was cut off
        if node.tag not in TAGS or node.text.startswith("\\") or len(node) != wanted:
            return False
    return True
