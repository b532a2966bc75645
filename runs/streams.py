"""Standard output and error that cannot end a run: what is printed is a courtesy, the results are on the disk."""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class OptionalStream:
    """A text stream whose first failure silences it: a closed pipe or terminal, a full disk.

    A character that the stream's encoding lacks is written as a backslash escape. Everything else is the stream's own.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.failure = ""  # what silenced the stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the text of a silenced stream."""
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, unless the stream is silenced."""
        self._attempt(self._stream.flush)

    def _attempt(self, function: Any, *arguments: Any) -> None:
        if self.failure:
            return
        try:
            function(*arguments)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.failure = str(error) or type(error).__name__
            # What is left in the buffer would fail again when Python ends, which would change the exit code.
            with contextlib.suppress(OSError, ValueError):  # of a stream without a file
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def optional_streams() -> Iterator[None]:
    """Replace sys.stdout and sys.stderr by `OptionalStream`s, until the body ends."""
    streams = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:  # for a stream that was closed before Python started
        wrapped = [s if isinstance(s, OptionalStream) else OptionalStream(s or nowhere) for s in streams]
        sys.stdout, sys.stderr = wrapped
        try:
            yield
        finally:
            for stream in wrapped:
                stream.flush()
            sys.stdout, sys.stderr = streams


def stream_failures() -> list[str]:
    """A line for each standard stream that has been silenced: its name and what silenced it."""
    streams = {"standard output": sys.stdout, "standard error": sys.stderr}
    return [f"{name} failed: {reason}" for name, s in streams.items() if (reason := getattr(s, "failure", ""))]
