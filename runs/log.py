"""The log of a run: rows that are appended to a CSV file, to a text file, to the terminal and to TensorBoard."""

import contextlib
import csv
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tabulate

from runs.errors import UserError
from runs.files import atomic_write
from runs.streams import stream_failures

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

HEADER_EVERY = 40  # rows of the printed table between two headers

Row = dict[str, float]


def log_path(root: str | Path, script: str) -> Path:
    """The path of the log in the run directory of a script, given by its name or path."""
    return Path(root, f"{Path(script).name}-logs.csv")


def read_rows(path: str | Path) -> list[Row]:
    """Read the rows of a CSV log. A last line without a newline is incomplete and ignored.

    Raises UserError, which starts with the path.
    """
    try:
        with open(path, newline="") as file:
            text = file.read()
        complete = io.StringIO(text[: text.rfind("\n") + 1], newline="")
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(complete)]
        return [{**row, "t": int(row["t"])} for row in rows]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, csv.Error) as error:
        raise UserError(f"{path}: {error}, expected the table of a log") from None


def csv_text(rows: Sequence[dict], header: bool = True) -> str:
    """Rows of the same columns as CSV, with a line of the columns' names where `header` is true."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["t"], lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_csv(path: Path, rows: Sequence[dict]) -> Path:
    """Write rows as CSV, atomically, and return the path."""
    with atomic_write(path) as file:
        file.write(csv_text(rows).encode())
    return path


def table_text(row: Row, header: bool) -> str:
    """A row of the printed table, below the line of the columns' names where `header` is true.

    The table omits columns with a slash in their name, because it would be too wide for a terminal.
    """
    row = {name: value for name, value in row.items() if "/" not in name}
    table = tabulate.tabulate([list(row.values())], list(row), tablefmt="simple", floatfmt="9.4g")
    return table if header else table.split("\n")[-1]


class Log:
    """The rows of a run and the files `<script>-logs.csv` and `<script>-logs.out` in its directory.

    Parameters
    ----------
    root : the run directory.
    script : name of the script.
    """

    def __init__(self, root: Path, script: str):
        self.root = root
        self.csv = log_path(root, script)
        self.text = root / f"{script}-logs.out"
        self.rows: list[Row] = []
        self._noted: list[str] = []  # failures of the standard streams
        self._events: SummaryWriter | None = None

    def restart(self, n: int) -> None:
        """Keep the first n rows of the files and drop what follows, a torn line included. Raises UserError if fewer."""
        rows = read_rows(self.csv)[:n] if n else []
        if len(rows) < n:
            raise UserError(f"{self.csv}: found {len(rows)} rows, expected at least {n}")
        self.rows = rows
        lines = [f"{table_text(row, i % HEADER_EVERY == 0)}\n" for i, row in enumerate(rows)]
        for path, content in ((self.csv, csv_text(rows) if rows else ""), (self.text, "".join(lines))):
            with atomic_write(path) as file:
                file.write(content.encode())

    def append(self, row: Row) -> None:
        """Add a row to the files, and print it above the progress bars. Raises UserError if a write fails.

        All rows have the columns of the first one: those of a continued run from before a column existed lack it.
        """
        from tqdm import tqdm

        first = not self.rows
        if not first and (missing := [name for name in self.rows[0] if name not in row]):
            raise UserError(
                f"{self.csv}: found the column {missing[0]}, expected those of this version: start a new run"
            )
        row = row if first else {name: row[name] for name in self.rows[0]}
        line = table_text(row, len(self.rows) % HEADER_EVERY == 0)
        self.rows.append(row)
        for path, content in ((self.csv, csv_text([row], header=first)), (self.text, f"{line}\n")):
            try:
                with open(path, "a") as file:
                    file.write(content)
            except OSError as error:
                raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        self._write_events([row])
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        self._note_failures()

    def _note_failures(self) -> None:
        """Say once in the text log that a standard stream has failed, since the stream cannot say it."""
        new = [failure for failure in stream_failures() if failure not in self._noted]
        self._noted += new
        if new:
            with contextlib.suppress(OSError), open(self.text, "a") as file:
                file.writelines(f"# {failure}; the run continues without it\n" for failure in new)

    def sync(self) -> None:
        """Force the rows to the disk, so that no checkpoint counts rows that a power failure can lose."""
        for path in (self.csv, self.text):
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:  # before the first row
                os.fsync(file.fileno())

    def start_tensorboard(self) -> None:
        """Also write all rows to an event file for TensorBoard, which replaces the run's earlier event files.

        Event files of a continued run may have rows from after its checkpoint.
        """
        from torch.utils.tensorboard import SummaryWriter

        for old in self.root.glob("events.out.tfevents.*"):
            old.unlink()
        self._events = SummaryWriter(self.root)
        self._write_events(self.rows)

    def _write_events(self, rows: Sequence[Row]) -> None:
        if self._events is None:
            return
        try:
            for row in rows:
                for name in row.keys() - {"t"}:
                    self._events.add_scalar(name, row[name], row["t"])
            self._events.flush()
        except OSError as error:
            raise UserError(f"{self.root}: events for TensorBoard cannot be written: {error.strerror}") from None

    def close(self) -> None:
        """Close the event file."""
        if self._events:
            self._events.close()
