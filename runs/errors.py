"""Errors that end a command with one line on stderr and an exit code, without a traceback."""

import functools
import importlib.util
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runs.streams import optional_streams

NOT_FINITE = ": not finite:"  # in the error of a run whose loss or parameters became infinite or NaN, and in no other


class UserError(ValueError):
    """A mistake that the user can correct: one line that names the option or file, the value found, and what is valid.

    Other programs can catch a `UserError` as a ValueError.
    """


class Stopped(Exception):
    """Raised in a run that a signal stops."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


@contextmanager
def user_error(label: str) -> Iterator[None]:
    """Convert a ValueError of the body into a `UserError` that starts with `label`, e.g. an option's name."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{label} {error}") from None


def require_packages(label: str, *names: str) -> None:
    """Check that optional packages are installed. Raises UserError, which starts with `label`."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{label}: the package {name} is not installed; run: pip install -r requirements-sweep.txt")


def one_line_errors(main: Callable) -> Callable:
    """Decorate a command's `main(argv)`: a `UserError` or a signal ends the process with one line on stderr.

    The exit code is 2 for a `UserError`, and 128 + the signal's number after a signal: 130 for SIGINT, 143 for SIGTERM,
    129 for SIGHUP. A standard stream that fails ends nothing (`runs.streams`).
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None):
        with optional_streams():
            try:
                return main(argv)
            except UserError as error:
                code, line = 2, f"error: {error}"
            except Stopped as stopped:
                code, line = 128 + stopped.number, str(stopped)
            except KeyboardInterrupt:
                code, line = 128 + signal.SIGINT, "interrupted"
            except (RuntimeError, MemoryError) as error:
                # The words of torch, of CUDA and of cuBLAS; a MemoryError of Python has none.
                if isinstance(error, RuntimeError) and not re.search("allocate|out of memory|ALLOC_FAILED", str(error)):
                    raise
                code, line = 2, f"error: out of memory; fewer channels, images per batch or samples need less: {error}"
            print(f"{Path(sys.argv[0]).name}: {' '.join(line.split())}", file=sys.stderr)
            sys.exit(code)

    return wrapped
