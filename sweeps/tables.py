"""Tables of runs: a row per run with its arguments and metrics, and per group of runs means and intervals."""

import contextlib
import itertools
import math
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runs.directory import is_locked
from runs.errors import UserError
from runs.files import read_yaml
from runs.log import read_rows
from runs.options import NOT_IDENTIFYING, RUN_KEYS
from sweeps.grid import read_sweep

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.95  # of the confidence intervals
STATES = ("running", "stopped", "finished")
BEST = {
    "acc": max,
    "elbo": max,
    "_ll": max,
    "nll": min,
    "loss": min,
    "/ece": min,
    "/brier": min,
}  # by the end of a column's name
DTYPES = (({int}, "Int64"), ({int, float}, "float64"), ({bool}, "boolean"))  # of columns with values of these types


class Record(NamedTuple):
    """A run: its script, directory and state, its arguments as numbers and texts, and the rows of its log."""

    script: str
    root: Path
    state: str | None
    arguments: dict[str, Any]
    rows: list[dict[str, float]]


def printable(value: Any) -> str:
    """A value from a file as one line of printable characters; a list as its items, separated by spaces."""
    line = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def table_value(value: Any) -> bool | int | float | str | None:
    """An argument as a value that a table can store: a number of 64 bits, or a text."""
    small = not isinstance(value, int) or -(2**63) <= value < 2**63
    return value if isinstance(value, bool | int | float | None) and small else printable(value)


@contextlib.contextmanager
def reported(label: str) -> Iterator[None]:
    """Print a UserError of the body on stderr after this label, instead of raising it."""
    try:
        yield
    except UserError as error:
        print(f"{label}: {printable(error)}", file=sys.stderr)


def find_runs(path: Path) -> list[Path]:
    """The run directories at a path: a DWP_PATH, the folder of a sweep, or a run directory. Raises UserError."""
    if (path / "sweep.yaml").exists():
        trials, roots = read_sweep(path), []
        for trial in trials:
            with reported("left out"):
                roots += [Path(root)] if (root := trial.record()["root"]) else []
        if len(roots) < len(trials):
            print(f"{path}: {len(trials) - len(roots)} of {len(trials)} trials have no run yet", file=sys.stderr)
        return roots
    if (path / "params.yaml").exists():
        return [path]
    if not any(path.glob("exman-*")):
        raise UserError(f"PATH {path}: found neither runs (exman-*), nor sweep.yaml, nor params.yaml")
    return sorted(folder for folder in path.glob("exman-*/runs/*") if folder.is_dir())


def run_state(root: Path) -> str | None:
    """The state in a run's state.yaml: running, stopped or finished; None without that file. Raises UserError.

    A run whose state is running, but whose process does not exist any more, is "killed".
    """
    file = root / "state.yaml"
    if not file.exists():
        return None
    state = printable(read_yaml(file).get("state"))
    if state not in STATES:
        raise UserError(f"{file}: found {state!r}, expected one of {', '.join(STATES)}")
    return "killed" if state == "running" and not is_locked(root / ".lock") else state


def read_run(root: Path) -> Record:
    """Read a run directory. Raises UserError where the log is empty or a file is damaged."""
    params = read_yaml(root / "params.yaml")
    logs = sorted(root.glob("*-logs.csv"))
    rows = read_rows(logs[0]) if logs else []
    if not rows:
        raise UserError(f"{root}: found no row of a log, expected one at least")
    if not all(math.isfinite(value) for row in rows for value in row.values()):
        raise UserError(f"{logs[0]}: found values that are not finite")
    script = printable(logs[0].name.removesuffix("-logs.csv"))
    arguments = {printable(key): table_value(value) for key, value in params.items() if key not in RUN_KEYS}
    rows = [{printable(name): value for name, value in row.items()} for row in rows]
    return Record(script, root, run_state(root), arguments, rows)


def read_runs(paths: Sequence[Path]) -> list[Record]:
    """All runs at these paths, each once. Names on stderr those that cannot be read. Raises UserError if none can."""
    records = []
    for root in dict.fromkeys(run for path in paths for run in find_runs(path)):
        with reported("left out"):
            records.append(read_run(root))
    if not records:
        raise UserError(f"PATH {' '.join(map(str, paths))}: found no run with a row in its log")
    return records


def metrics_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """`last_<column>` of each column of a log, and `best_<column>` of each column that has a best value."""
    metrics = {f"last_{name}": value for name, value in rows[-1].items()}
    for name in rows[0]:
        for end, best in BEST.items():
            if name.endswith(end):
                metrics[f"best_{name}"] = best(row[name] for row in rows)
    return metrics


def data_frame(rows: list[dict[str, Any]], columns: Iterable[str]) -> "pd.DataFrame":
    """Rows as a table with these columns, each of one type: numbers, bools, or text where the values are of more types.

    A value that a row lacks is empty.
    """
    import pandas as pd

    table = {}
    for name in columns:
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None} or {str}
        dtype = next((dtype for members, dtype in DTYPES if kinds <= members), "string")
        if dtype == "string":
            values = [None if value is None else str(value) for value in values]
        table[name] = pd.Series(values, dtype=dtype)
    return pd.DataFrame(table)


def runs_table(records: list[Record]) -> "pd.DataFrame":
    """The table of runs: a row per record, with the run's arguments and `metrics_of` its log."""
    metrics = [metrics_of(record.rows) for record in records]
    arguments = [record.arguments for record in records]
    own = [{"script": r.script, "run": printable(r.root.name), "state": r.state} for r in records]
    rows = [words | values | first for words, values, first in zip(arguments, metrics, own, strict=True)]
    return data_frame(rows, dict.fromkeys(itertools.chain(own[0], *arguments, *metrics)))


def group_runs(records: list[Record], by: Sequence[str]) -> dict[tuple, list[Record]]:
    """The finished runs by (script, values of the arguments `by`). Raises UserError for an argument that no run has.

    A run of older code, without a state, counts as finished.
    """
    known = sorted({name for record in records for name in record.arguments})
    for name in by:
        if name not in known:
            raise UserError(f"--by: found {name!r}, expected arguments of these runs: {', '.join(known)}")
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        if record.state in ("finished", None):
            groups.setdefault((record.script, *map(record.arguments.get, by)), []).append(record)
    return groups


def mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each score."""
    return {name: statistics.fmean(row[name] for row in scores) for name in scores[0]}


def summary(values: list[float]) -> dict[str, float]:
    """n, mean, std (divisor n - 1), and low and high of the mean's 95% interval by Student's t.

    For n = 1, std, low and high are NaN.
    """
    from scipy import stats

    n, mean = len(values), statistics.fmean(values)
    std = statistics.stdev(values) if n > 1 else math.nan
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * std / n**0.5
    return {"n": n, "mean": mean, "std": std, "low": mean - half, "high": mean + half}


def standard_error(found: Mapping[str, float]) -> float:
    """The standard error of a mean, from the `summary` of the values."""
    return found["std"] / found["n"] ** 0.5


def groups_table(groups: dict[tuple, list[Record]], by: Sequence[str]) -> "pd.DataFrame":
    """The table of groups: a row per group and metric, with the `summary` of the metric over the group's runs."""
    rows = []
    for key, members in groups.items():
        metrics = [metrics_of(record.rows) for record in members]
        for name in dict.fromkeys(itertools.chain(*metrics)):
            values = [m[name] for m in metrics if name in m]
            rows.append(dict(zip(("script", *by), key, strict=True)) | {"metric": name} | summary(values))
    return data_frame(rows, dict.fromkeys(("script", *by, "metric", "n", "mean", "std", "low", "high")))


def print_warnings(records: list[Record], groups: dict[tuple, list[Record]]) -> None:
    """Warn on stderr of runs that are in no group, and of repeated runs, which make intervals too narrow."""
    members = list(itertools.chain(*groups.values()))
    if left := len(records) - len(members):
        print(f"{left} runs are not finished: in no group", file=sys.stderr)
    distinct = {(r.script, *((k, v) for k, v in r.arguments.items() if k not in NOT_IDENTIFYING)) for r in members}
    if repeated := len(members) - len(distinct):
        print(f"{repeated} runs repeat the arguments of another: they are not independent", file=sys.stderr)
