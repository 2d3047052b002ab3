"""Settings and samples of a finished evaluation, with every field that is checked when they are read back."""

from posttrain.evaluation import results

SETTINGS = {
    "schema": results.SCHEMA_VERSION, "benchmark": "x", "data_sha256": "d", "limit": None, "expected_samples": 2,
    "checkpoint": {"name": "m"}, "grader": {"name": "posttrain"},
    "prompt": {"name": "chat", "hash": "h", "form": "boxed"},
    "decoding": {"temperature": 0.0, "num_samples": 1, "max_new_tokens": 9},
}  # fmt: skip
GRADED = [
    {"id": f"q{i}", "sample": 0, "prompt_hash": "h", "completion": "√", "finish_reason": "stop", "tokens": i,
     "format": True, "format_compat": True, "answer": "1", "gold": "1", "verdict": "correct", "correct_lenient": True,
     "vote": 0}
    for i in range(2)
]  # fmt: skip
