"""One answer and its verdict."""

from posttrain.grading.grader import Grader, Verdict


def verdict(grader: Grader, gold: str, completion: str, truncated: bool = False) -> Verdict:
    (grade,) = grader.grade([gold], [completion], [truncated])
    return grade.verdict
