"""The values of a JSON text one after the other: what is in memory is the longest of them, whatever the text's size.

A value comes as its own text, as it stands, for whoever reads it. So an array of rows gives what JSON Lines of the same
rows give, down to half a surrogate pair and to the last digit of a number.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO

ROW_BYTES = 16 * 2**20  # of one row; the 4 million characters of the longest that is considered are no more
CHUNK = 64 * 1024  # bytes read at once, until a value is longer
BLANK = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder(parse_int=str, parse_float=str)  # it only looks for the end of a value
NUMBER = "0123456789.eE+-"
CUT = 16  # characters before the end of what was read, where a fault may be that of the cut


class JsonError(ValueError):
    """A text that is no JSON, or not what is expected there."""


class TooLongError(JsonError):
    """A value longer than what the reader was asked to hold."""


class JsonText:
    """A JSON text to go through from start to end. `limit` is the largest value in characters."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self.file, self.limit = file, limit
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.text, self.place, self.ended = "", 0, False

    def peek(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            self.place = BLANK.match(self.text, self.place).end()  # type: ignore[union-attr]
            if self.place < len(self.text) or not self._more():
                return self.text[self.place : self.place + 1]

    def take(self, expected: str) -> str:
        """The next character, which must be one of `expected`."""
        found = self.peek()
        if not found or found not in expected:
            what = repr(found) if found else "the end"
            raise JsonError(f"expected {' or '.join(expected)}, found {what}")
        self.place += 1
        return found

    def value(self) -> str:
        """The text of the next value."""
        self.peek()
        while True:
            try:
                _, end = DECODER.raw_decode(self.text, self.place)
                may_go_on = len(self.text) - end < CUT and self.text[end : end + 1] in NUMBER
                if not may_go_on or not self._more():
                    text, self.place = self.text[self.place : end], end
                    return text
            except RecursionError:
                raise JsonError("nested too deeply") from None
            except json.JSONDecodeError as error:
                cut = error.pos > len(self.text) - CUT or error.msg.startswith("Unterminated string")
                if not cut or not self._more():
                    raise JsonError(f"{error.msg}: {self.text[error.pos : error.pos + 40]!r}") from None

    def items(self) -> Iterator[str]:
        """The values of an array, whose opening bracket comes next."""
        self.take("[")
        if self.peek() == "]":
            self.place += 1
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def fields(self) -> Iterator[str]:
        """The keys of an object, whose opening brace comes next; the caller takes each one's value."""
        self.take("{")
        if self.peek() == "}":
            self.place += 1
            return
        while True:
            if self.peek() != '"':
                self.take('"')
            key = json.loads(self.value())
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def end(self) -> None:
        """Raise where something follows."""
        if self.peek():
            raise JsonError(f"something follows the end: {self.text[self.place : self.place + 40]!r}")

    def _more(self) -> bool:
        """Read on, as much again as is waiting; False at the end."""
        waiting = len(self.text) - self.place
        if self.ended:
            return False
        if waiting > self.limit:
            raise TooLongError(f"a value of more than {self.limit} characters")
        chunk = self.file.read(max(CHUNK, waiting))
        self.ended = not chunk
        self.text = self.text[self.place :] + self.decoder.decode(chunk, final=self.ended)
        self.place = 0
        return True
