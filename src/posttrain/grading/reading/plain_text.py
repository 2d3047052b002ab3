"""Mathematics as it is typed without LaTeX: sqrt(3), 2*pi, x**2, exp(x), sinx, -inf."""

import re

NAMES = re.compile(r"sqrt|pi|inf|exp|\*|\^ ?\(|(?:sin|cos|tan|sec|csc|cot|ln|log)")
POWER = re.compile(r" ?\*\* ?")
TIMES = re.compile(r"(?<=[\w)}]) ?\* ?(?=[\w(\\.])")
INFINITY = re.compile(r"(?<![\\A-Za-z])(?:infinity|infty|inf)(?![A-Za-z])")
PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
GLUED_FUNCTION = re.compile(r"(?<![\\A-Za-z{])(sin|cos|tan|sec|csc|cot|ln|log)([a-z])(?![A-Za-z])")
FUNCTION = re.compile(r"\\text ?\{(sin|cos|tan|ln|log)\}|(?<![\\A-Za-z{])(sin|cos|tan|sec|csc|cot|ln|log)(?![A-Za-z])")
OPENING = re.compile(r"(?<![\\A-Za-z])(sqrt|exp) ?\(|\^ ?\(")
MAX_CALLS = 20


def to_latex(text: str) -> str:
    """LaTeX for what is typed plainly; other text stays."""
    if not NAMES.search(text):
        return text
    text = _calls(POWER.sub("^", text))
    text = INFINITY.sub(r"\\infty ", PI.sub(r"\\pi ", text))
    text = GLUED_FUNCTION.sub(r"\\\1 \2", text)
    text = FUNCTION.sub(lambda match: f"\\{match.group(1) or match.group(2)} ", text)
    return TIMES.sub(r"\\cdot ", text)


def _calls(text: str) -> str:
    """sqrt(…) as \\sqrt{…}, exp(…) as e^{…}, and ^(…) as ^{…}; the innermost last, as each is found from the left."""
    for _ in range(MAX_CALLS):
        call = OPENING.search(text)
        end = _closing(text, call.end()) if call else None
        if call is None or end is None:
            return text
        name = {"sqrt": "\\sqrt", "exp": "e^"}.get(call.group(1), "^")
        text = f"{text[: call.start()]}{name}{{{text[call.end() : end]}}}{text[end + 1 :]}"
    return text


def _closing(text: str, start: int) -> int | None:
    """Where the bracket closes that was opened before `start`."""
    depth = 1
    for position in range(start, len(text)):
        depth += (text[position] == "(") - (text[position] == ")")
        if depth == 0:
            return position
    return None
