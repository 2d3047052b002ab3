"""Answers that hang, crash or fool a verifier. None is the gold `\\sqrt{7}`; each must be decided in bounded time."""


def box(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


def nested(opening: str, depth: int, inner: str = "1", closing: str = "}") -> str:
    return box(opening * depth + inner + closing * depth)


TOWERS = [
    "9^{9^{9^{9}}}", "2^{2^{2^{2^{2^{2}}}}}", r"\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}", "(10^{10^{10}})!", "10^9!",
    "999999!", "((5!)!)!", r"\binom{10^9}{10^8}", r"\binom{1000000}{500000}", r"\sum_{k=1}^{10^9} \frac{1}{k}",
    r"\prod_{k=1}^{10^7} k", r"\sqrt[10^9]{7^{10^9}}", r"x^{x^{x^{x}}}=y^{y^{y}}", "10^{-10^{9}}", "1e999999999",
    "(x+1)^{1000}(x-1)^{1000}", "x^{5000}-1=0", r"\int_0^{10^9} e^{x^{x}} dx", r"\lim_{n\to\infty} n^{n^n}",
    r"2^{1000000}-2^{999999}", r"\log_{10}(9^{9^9})",
]  # fmt: skip
DEPTHS = [
    *(nested(r"\frac{1}{1+", depth) for depth in (150, 1000, 5000)),
    *(nested(r"\sqrt{", depth, "x") for depth in (180, 2000)),
    *(nested("{", depth) for depth in (500, 5000)), nested(r"\text{", 3000), nested(r"\boxed{", 2000),
    nested(r"\sin(", 300, "x", ")"), nested(r"\left(", 3000, "1", r"\right)"), box("(" * 900), box(")" * 5000),
    box("[" * 5000), box(r"\{" * 5000), nested("x^{", 400, "2"),
]  # fmt: skip
LONG = [
    *(box("9" * digits) for digits in (1_900, 10_000, 100_000)), box("0." + "3" * 100_000), box("1," * 20_000),
    "$" * 100_000 + box("5"), r"\boxed{" * 20_000, r"\boxed{1} " * 5000, r"\boxed" * 30_000,
    *(box(r"\{" + ",".join(map(str, range(n))) + r"\}") for n in (400, 2000)), box("(" + ",".join("1" * 2000) + ")"),
    box(r"\begin{pmatrix}" + r"\\".join(["&".join("1" * 50)] * 50) + r"\end{pmatrix}"), box("+".join("x" * 3000)),
    "the answer is" + " " * 60_000, "\n" * 100_000, "the answer is " * 20_000, "#### " * 20_000,
    box("-" * 50_000 + "5"),
    box("!" * 10_000), box("^" * 10_000), box("=" * 20_000), box("\\" * 50_000), box(" and ".join("1" * 5000)),
    box("a" * 50_000 + "!"), "<answer>" * 10_000,
]  # fmt: skip
ODD = [
    box("\x00"), "\x00\ud800\u202e" + box("\x00"), box("\udcff" * 50), box("\u202e7√"), box("\u200b".join("sqrt7")),
    box("7" + "\u0301" * 5000), box("🧮" * 500), box("\ufeff"), box("NaN"), box(r"\infty-\infty"), box(r"\frac{0}{0}"),
]  # fmt: skip
INJECTED = [
    box("__import__('os').system('touch /tmp/hacked')"), box("eval('open(\"/tmp/hacked\",\"w\")')"),
    box("(lambda: sqrt(7))()"), box(r"\input{/etc/passwd}"), box(r"\write18{touch /tmp/hacked}"), box("{{7*7}}"),
    box("S('sqrt(7)')"), box("exit()"), box("sqrt(7) or True"), box("'; DROP TABLE golds; --"),
]  # fmt: skip
HOSTILE = [*map(box, TOWERS), *DEPTHS, *LONG, *ODD, *INJECTED]
