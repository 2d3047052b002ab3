"""Decide what a trace must be to be trained on, and name the reason why a row is dropped.

Every row that is read is kept or dropped for exactly one reason, the first of `REASONS` that holds, so that
read = kept + the sum of the counts. A filtered dataset is `data/<name>/` with

- `train.parquet`, `validation.parquet`: the columns of `posttrain.data.rows.ROW_SCHEMA`, in order of `id`;
- `train.ids.parquet`, …: the same rows as token ids, see `posttrain.data.token_files`;
- `manifest.json`: `counts: {read, dropped: {reason: rows}, kept: {split: rows}}`, `filters` (every setting,
  `max_tokens` and `length_of` among them) and
  `decontamination: {ngram, against: {benchmark: {sha256, questions, rows}}}`, where `rows` counts the rows dropped as
  contaminated that touch the benchmark;
- with --keep-dropped `dropped.parquet`: `ROW_SCHEMA`, then `reason` and `detail` (text for people, may be null). A row
  nobody could read has null in `prompt`, `completion` and `n_tokens`; `n_tokens` is also null where the text was far
  too long to be worth counting.
"""

import re

import numpy as np

from posttrain.grading.grader import Grader, Verdict

REASONS = {
    "unreadable": "no JSON object, no question and answer, or a field that no prompt shows",
    "invalid_text": "control characters, broken surrogates or replacement characters",
    "control_tokens": "a control token of the tokenizer is written in the text of question or answer",
    "too_long": "more tokens than the budget",
    "too_short": "a response of fewer tokens than the least",
    "unfinished": "the thought has no </think>",
    "bad_gold": "no gold answer, or one that the grader does not find equal to itself",
    "no_answer": "the response gives no final answer",
    "wrong_answer": "the answer is not equal to the gold one",
    "unverified": "comparing the answer took too long",
    "loop": "the same n-gram of tokens again and again",
    "untrainable": "what posttrain.data.encode's lint refuses, such as the end token inside the response",
    "no_rate": "the column to order by holds no number",
    "contaminated": "shares an n-gram with a benchmark's question",
    "duplicate": "the same question and response as a kept row",
    "near_duplicate": "almost the same as a kept row",
    "over_cap": "more rows of one source than its cap",
    "not_chosen": "beyond the number of rows asked for",
}
LONGEST = 2**22  # characters of a row; more are not tokenised, and too many for any budget
LOOP_NGRAM = 20  # tokens; a phrase of a solution is shorter, a repeated step is longer
# C0 controls but tab, newline and return; surrogates, which no UTF-8 text has; and what a broken decoder leaves behind.
INVALID = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffd]")
HASH_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it loses nothing


def text_fault(*texts: str) -> str | None:
    """The first character that no text should hold, or None."""
    for text in texts:
        if found := INVALID.search(text):
            return f"character U+{ord(found.group()):04X} at {found.start()}"
    return None


def unfinished(response: str, require_think: bool) -> bool:
    """Whether a thought was opened, or had to be, and never closed."""
    opened = response.rfind("<think>")
    closed = response.rfind("</think>")
    return closed < opened or (require_think and closed < 0)


def answer_reasons(golds: list[str | None], completions: list[str], grader: Grader) -> list[str | None]:
    """Per row the reason its answer is no good, or None where it equals the gold one."""
    known = [gold if gold is not None else "" for gold in golds]
    distinct = sorted(set(known))
    boxed = [f"\\boxed{{{gold}}}" for gold in distinct]
    themselves = dict(zip(distinct, grader.grade(distinct, boxed, [False] * len(distinct)), strict=True))
    grades = grader.grade(known, completions, [False] * len(known))
    return [_answer_reason(themselves[gold].verdict, grade.verdict) for gold, grade in zip(known, grades, strict=True)]


def _answer_reason(gold_itself: Verdict, verdict: Verdict) -> str | None:
    if gold_itself is not Verdict.CORRECT:
        return "bad_gold"
    known = {Verdict.CORRECT: None, Verdict.UNPARSED: "no_answer", Verdict.WRONG: "wrong_answer"}
    return known.get(verdict, "unverified")


def ngram_hashes(tokens: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit hash of every n-gram of `tokens`; of the whole where it is shorter than n. tokens: (T,) integers."""
    hashes = _powers(tokens.astype(np.uint64) + np.uint64(1), min(n, len(tokens)))
    hashes ^= hashes >> np.uint64(29)  # the product's high bits are the good ones
    return hashes * HASH_BASE


def _powers(values: np.ndarray, n: int) -> np.ndarray:
    """The n-grams as numbers to the base `HASH_BASE`, modulo 2**64, each put together of its two halves."""
    if n <= 1:
        return values.copy()
    half = n // 2
    halves = _powers(values, half)
    whole = halves[:-half] * np.uint64(pow(int(HASH_BASE), half, 2**64)) + halves[half:]
    return whole if n == 2 * half else whole[:-1] * HASH_BASE + values[n - 1 :]


def most_repeated(ids: np.ndarray) -> int:
    """How often the most frequent n-gram of `LOOP_NGRAM` tokens comes."""
    if len(ids) <= LOOP_NGRAM:
        return min(1, len(ids))
    return int(np.unique(ngram_hashes(ids, LOOP_NGRAM), return_counts=True)[1].max())
