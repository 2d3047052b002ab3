"""What a person reads of a rehearsal: one screen, and the same as JSON."""

from dataclasses import asdict
from typing import Any

from posttrain.console import clock
from posttrain.pipelines.rehearsal.faults import FAILED, LEFT_OUT, PASSED, Findings


def page(findings: Findings, title: str, plan: str, seconds: float, out: str) -> str:
    """Checks, what will differ, and the verdict of the plan."""
    width = max((len(check.name) for check in findings.checks), default=0)
    lines = [title]
    for check in findings.checks:
        lines.append(f"  {check.state:<8} {check.name:<{width}}  {check.detail}".rstrip())
    if findings.differences:
        wide = max(map(len, findings.differences))
        lines += ["what will be different there:"]
        lines += [f"  {name:<{wide}}  {what}" for name, what in findings.differences.items()]
    lines += [f"plan: {plan}"] if plan else []
    return "\n".join([*lines, summary(findings, seconds, out)])


def summary(findings: Findings, seconds: float, out: str) -> str:
    """How many checks passed, failed and were left out, in one line."""
    counts = [sum(check.state == state for check in findings.checks) for state in (PASSED, FAILED, LEFT_OUT)]
    told = [f"{counts[0]} passed"] + ([f"{counts[1]} FAILED"] if counts[1] else [])
    told += [f"{counts[2]} left out"] if counts[2] else []
    return f"{', '.join(told)}, {clock(seconds)} → {out}"


def as_record(findings: Findings, plan: str, seconds: float) -> dict[str, Any]:
    """Plain values, for rehearsal.json."""
    return {
        "recipe": findings.lines.path, "passed": not findings.failed, "seconds": round(seconds, 1),
        "checks": [asdict(check) for check in findings.checks], "differences": findings.differences, "plan": plan,
    }  # fmt: skip
