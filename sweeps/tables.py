"""Tables of runs: a row per run with its arguments and metrics, and per group of runs means and intervals."""

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runs.directory import is_locked
from runs.errors import UserError
from runs.files import read_yaml
from runs.log import read_rows
from runs.options import NOT_IDENTIFYING, RUN_KEYS
from sweeps.grid import read_sweep
from sweeps.trials import Trial

if TYPE_CHECKING:
    import pandas as pd

OWN_COLUMNS = ("script", "run", "state")  # the first columns of the table of runs
LEVEL = 0.95  # of the confidence intervals
STATES = ("running", "stopped", "finished")


class Record(NamedTuple):
    """A run: its script, directory and state, its arguments as numbers and texts, and the rows of its log."""

    script: str
    root: Path
    state: str | None
    arguments: dict[str, Any]
    rows: list[dict[str, float]]


# --- reading ------------------------------------------------------------------------------------------------------


def printable(value: Any) -> str:
    """A value from a file as one line of printable characters; a list as its items, separated by spaces."""
    line = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def table_value(value: Any) -> bool | int | float | str | None:
    """An argument as a value that a table can store: a number of 64 bits, or a text."""
    small = not isinstance(value, int) or -(2**63) <= value < 2**63
    return value if isinstance(value, bool | int | float | None) and small else printable(value)


def trial_root(trial: Trial) -> str:
    """The run directory of a trial, or "" if it has none; a damaged record is named on stderr."""
    try:
        return trial.record()["root"]
    except UserError as error:
        print(f"left out: {printable(error)}", file=sys.stderr)
        return ""


def find_runs(path: Path) -> list[Path]:
    """The run directories at a path: a DWP_PATH, the folder of a sweep, or a run directory. Raises UserError."""
    if (path / "sweep.yaml").exists():
        roots = [trial_root(trial) for trial in read_sweep(path)]
        if not all(roots):
            print(f"{path}: {roots.count('')} of {len(roots)} trials have no run yet", file=sys.stderr)
        return [Path(root) for root in roots if root]
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
        try:
            records.append(read_run(root))
        except UserError as error:
            print(f"left out: {printable(error)}", file=sys.stderr)
    if not records:
        raise UserError(f"PATH {' '.join(map(str, paths))}: found no run with a row in its log")
    return records


# --- tables -------------------------------------------------------------------------------------------------------


def best_of(column: str) -> Callable | None:
    """The function, max or min, that chooses the best value of a log's column; None for a column without a best."""
    if column.endswith(("acc", "elbo", "_ll")):
        return max
    return min if column.endswith(("nll", "loss")) else None


def metrics_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """`last_<column>` of each column of a log, and `best_<column>` of each column that has a best value."""
    metrics = {f"last_{name}": value for name, value in rows[-1].items()}
    for name in rows[0]:
        if best := best_of(name):
            metrics[f"best_{name}"] = best(row[name] for row in rows)
    return metrics


def typed_column(values: list) -> "pd.Series":
    """The values as a column of one type; as text where they are of several types that are not all numbers."""
    import pandas as pd

    kinds = {type(value) for value in values if value is not None}
    for members, dtype in (({int}, "Int64"), ({int, float}, "float64"), ({bool}, "boolean")):
        if kinds and kinds <= members:
            return pd.Series(values, dtype=dtype)
    return pd.Series([None if value is None else str(value) for value in values], dtype="string")


def data_frame(rows: list[dict[str, Any]], columns: list[str]) -> "pd.DataFrame":
    """Rows as a table with these columns; a value that a row lacks is empty."""
    import pandas as pd

    return pd.DataFrame({name: typed_column([row.get(name) for row in rows]) for name in columns})


def runs_table(records: list[Record]) -> "pd.DataFrame":
    """The table of runs: a row per record, with the run's arguments and `metrics_of` its log."""
    rows = []
    for record in records:
        own = (record.script, printable(record.root.name), record.state)
        rows.append(record.arguments | metrics_of(record.rows) | dict(zip(OWN_COLUMNS, own, strict=True)))
    arguments = dict.fromkeys(name for record in records for name in record.arguments)
    metrics = dict.fromkeys(name for record in records for name in metrics_of(record.rows))
    return data_frame(rows, list(dict.fromkeys((*OWN_COLUMNS, *arguments, *metrics))))


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


def summary(values: list[float]) -> dict[str, float | None]:
    """n, mean, std (divisor n - 1), and low and high of the mean's 95% interval by Student's t.

    For n = 1, std, low and high are None.
    """
    from scipy import stats

    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return {"n": 1, "mean": mean, "std": None, "low": None, "high": None}
    std = statistics.stdev(values)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * std / n**0.5
    return {"n": n, "mean": mean, "std": std, "low": mean - half, "high": mean + half}


def groups_table(groups: dict[tuple, list[Record]], by: Sequence[str]) -> "pd.DataFrame":
    """The table of groups: a row per group and metric, with the `summary` of the metric over the group's runs."""
    rows = []
    for key, members in groups.items():
        metrics = [metrics_of(record.rows) for record in members]
        for name in dict.fromkeys(name for m in metrics for name in m):
            values = [m[name] for m in metrics if name in m]
            rows.append(dict(zip(("script", *by), key, strict=True)) | {"metric": name} | summary(values))
    return data_frame(rows, list(dict.fromkeys(("script", *by, "metric", "n", "mean", "std", "low", "high"))))


def print_warnings(records: list[Record], groups: dict[tuple, list[Record]]) -> None:
    """Warn on stderr of runs that are in no group, and of repeated runs, which make intervals too narrow."""
    members = [record for group in groups.values() for record in group]
    if len(members) < len(records):
        print(f"{len(records) - len(members)} runs are not finished: in no group", file=sys.stderr)
    distinct = {(r.script, *((k, v) for k, v in r.arguments.items() if k not in NOT_IDENTIFYING)) for r in members}
    if len(distinct) < len(members):
        repeated = len(members) - len(distinct)
        print(f"{repeated} runs repeat the arguments of another: they are not independent", file=sys.stderr)
