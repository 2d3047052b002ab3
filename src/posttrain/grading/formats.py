"""Decide whether a completion has the format that its prompt asks for, whatever its answer."""

import re

from posttrain.grading.reading.extract import has_box

TAGS = re.compile(r"</think>\s*<answer>")
HASHES = re.compile(r"^####[ \t]*\S", re.MULTILINE)
SENTENCE = re.compile(r"answer is[^\n]*\. I hope it is correct\.")


def in_form(form: str, completion: str) -> bool:
    """Whether the completion has the form: a complete `box`, r1_zero's `tags` and nothing after them, a line with
    `hashes`, or Minerva's closing `sentence`.
    """
    if form == "box":
        return has_box(completion)
    if form == "tags":
        end = completion.rstrip()
        return end.endswith("</answer>") and TAGS.search(end) is not None
    return {"hashes": HASHES, "sentence": SENTENCE}[form].search(completion) is not None


def in_published_form(form: str, completion: str) -> bool:
    """The form as published graders test it: theirs differs for r1_zero, where one space must part the tags and text
    may follow them (`r1_zero_reward_fn` of sail-sg/understand-r1-zero).
    """
    if form == "tags":
        return "</think> <answer>" in completion and "</answer>" in completion
    return in_form(form, completion)
