"""Errors a user or a file can cause: shown as one line (or one line per fault), without a traceback."""

import os
import sys
from collections.abc import Callable


class PosttrainError(Exception):
    """Base of every error whose text alone tells the user where, which value, what was expected and what to do."""


def run_script(main: Callable[[], None]) -> None:
    """Call `main`; end a `PosttrainError` with its text on stderr and exit code 2, told by the main process only."""
    try:
        main()
    except PosttrainError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
