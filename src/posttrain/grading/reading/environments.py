"""Matrices, systems and vectors in one spelling: pmatrix for what is a matrix, a list for a system of equations."""

import re

MATRIX = re.compile(r"\\(begin|end) ?\{(?:[bB]matrix|smallmatrix|matrix|array)\}")  # determinants are another thing
COLUMNS = re.compile(r"(\\begin ?\{array\}) ?(?:\[[a-z]\])? ?\{[lcr| ]*+\}")
PARENTHESES = re.compile(
    r"^(?:\\left)? ?[(\[] ?(\\begin\{pmatrix\}.*\\end\{pmatrix\}) ?(?:\\right)? ?[)\]]$", re.DOTALL
)
SYSTEM = re.compile(
    r"^(?:\\left)? ?(?:\\\{)? ?\\begin ?\{(cases|aligned|align\*?|gathered|array)\}(.*)\\end ?\{\1\}"
    r" ?(?:\\right\.)?$",
    re.DOTALL,
)
RELATION = re.compile(r"[=<>]|\\[lg]e")
ROW_END = re.compile(r"\\\\(?: ?\[[^\]]{0,9}\])?")
UNIT_VECTOR = re.compile(r"\\(?:mathbf|hat|vec|boldsymbol|bm) ?\{ ?(?:\\mathbf\{)?\\?([ijk])(?:math)?\}?\}")
COEFFICIENT = r"(?:\d{1,20}(?:\.\d{1,20})?|\\frac ?\{[^{}]*+\} ?\{[^{}]*+\}|\\sqrt ?\{[^{}]*+\}|\([^()]*+\))?"
TERM = re.compile(rf" ?([+-]?) ?({COEFFICIENT}) ?@([ijk]) ?")


def flatten(text: str) -> str:
    """The text with its environments in one spelling."""
    if "\\begin" in text:
        text = COLUMNS.sub(r"\1", text)
        if system := SYSTEM.match(text):
            rows = [row.replace("&", "").strip().rstrip(",;.") for row in ROW_END.split(system.group(2))]
            if _is_system(system.group(2), rows):
                return ", ".join(row for row in rows if row)
        text = MATRIX.sub(r"\\\1{pmatrix}", text)
        if (inner := PARENTHESES.match(text)) and text.count("\\begin") == 1:
            text = inner.group(1)
    return _vector(text) if UNIT_VECTOR.search(text) else text


def _is_system(body: str, rows: list[str]) -> bool:
    """Whether every row is an equation or relation, and none a case with its condition."""
    return "\\text" not in body and "\\begin" not in body and all(RELATION.search(row) for row in rows if row)


def _vector(text: str) -> str:
    """`\\mathbf{i}+2\\mathbf{j}` as a column, of three entries where a `k` is among them."""
    marked, entries, position = UNIT_VECTOR.sub(r"@\1", text).strip(), {}, 0
    while position < len(marked):
        term = TERM.match(marked, position)
        if term is None or term.group(3) in entries:
            return text
        entries[term.group(3)] = (term.group(1) if term.group(1) == "-" else "") + (term.group(2) or "1")
        position = term.end()
    names = "ijk" if "k" in entries else "ij"
    rows = r" \\ ".join(entries.get(name, "0") for name in names)
    return f"\\begin{{pmatrix}} {rows} \\end{{pmatrix}}"
