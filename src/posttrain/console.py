"""What a person at the console reads. Only the main process says anything."""

import os


def is_main_process() -> bool:
    """Whether this process is the one that speaks; launchers number the others by RANK."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print `text` once, however many processes run."""
    if is_main_process():
        print(text, flush=True)
