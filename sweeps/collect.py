"""Runs as one table, with means and intervals per group, and as a page of curves, tables and kernels.

    python -m experiments.collect logs [--by num_examples prior_list] [--out DIR] [--html]

PATH is a DWP_PATH, the folder of a sweep, or a run directory; several are taken together. Writes, as CSV and Parquet:

- `runs`, a row per run: script, run, state, its arguments, and of each column of its log `last_<column>` and
  `best_<column>`: the largest accuracy, ELBO or log-likelihood, the smallest NLL or loss. Other columns (KL, lr, sec,
  l2_norm, dwp_reg) have no best. The best of a test column was chosen on the test set: it says what the run passed
  through, not what would be measured on new images, and must not select between runs or epochs.
- `groups`, a row per group and metric: n, mean, std (n - 1), and the 95% interval of the mean by Student's t over
  runs. A group is what has the same script and values of the arguments in `--by`. Only finished runs are in it.

Runs without a row, and damaged ones, are named on stderr and left out. `--html` writes all of it as one file that needs
nothing else, `page.html`.
"""

import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.sweep import read_sweep
from experiments.trials import Trial, dwp_path, held
from runs import RUN_KEYS, Parser, UserError, command, read_rows, read_yaml, require_packages, write_whole

if TYPE_CHECKING:
    import pandas as pd

OWN = ("script", "run", "state")  # the first columns
LEVEL = 0.95
NOT_NUMBERS = ("name", "tmp", "device", "tensorboard", "checkpoint_freq")  # arguments that no number depends on
STATES = ("running", "stopped", "finished")


class Record(NamedTuple):
    """A run as it was read: its arguments as numbers and texts, and the rows of its log, one at least."""

    script: str
    root: Path
    state: str | None
    arguments: dict[str, Any]
    rows: list[dict[str, float]]


# --- reading ------------------------------------------------------------------------------------------------------


def text(value: Any) -> str:
    """A value from a file as one line of printable characters, a list as its items in a row."""
    line = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def cell(value: Any) -> bool | int | float | str | None:
    """An argument as a table holds it."""
    small = not isinstance(value, int) or -(2**63) <= value < 2**63
    return value if isinstance(value, bool | int | float | None) and small else text(value)


def root_of(trial: Trial) -> str:
    """The run directory of a sweep's trial, or nothing; a damaged record is named on stderr."""
    try:
        return trial.record()["root"]
    except UserError as error:
        print(f"left out: {text(error)}", file=sys.stderr)
        return ""


def find_runs(path: Path) -> list[Path]:
    """The run directories at a path. Raises UserError where it is no DWP_PATH, sweep or run."""
    if (path / "sweep.yaml").exists():
        roots = [root_of(trial) for trial in read_sweep(path)]
        if not all(roots):
            print(f"{path}: {roots.count('')} of {len(roots)} trials have no run yet", file=sys.stderr)
        return [Path(root) for root in roots if root]
    if (path / "params.yaml").exists():
        return [path]
    if not any(path.glob("exman-*")):
        raise UserError(f"PATH {path}: found neither runs (exman-*), nor sweep.yaml, nor params.yaml")
    return sorted(folder for folder in path.glob("exman-*/runs/*") if folder.is_dir())


def run_state(root: Path) -> str | None:
    """running, stopped, finished, or killed: said to be running, by a process that is gone. None if it is not said."""
    if not (root / "state.yaml").exists():
        return None
    state = text(read_yaml(root / "state.yaml", f"{root}/state.yaml").get("state"))
    if state not in STATES:
        raise UserError(f"{root}/state.yaml: found {state!r}, expected one of {', '.join(STATES)}")
    return "killed" if state == "running" and not held(root / ".lock") else state


def read_run(root: Path) -> Record:
    """A run from its directory. Raises UserError where there is nothing to tabulate, or it is damaged."""
    params = read_yaml(root / "params.yaml", f"{root}/params.yaml")
    logs = sorted(root.glob("*-logs.csv"))
    rows = read_rows(logs[0], str(root)) if logs else []
    if not rows:
        raise UserError(f"{root}: no row in its log yet")
    if not all(math.isfinite(value) for row in rows for value in row.values()):
        raise UserError(f"{root}: {logs[0].name}: found values that are not finite")
    script = text(logs[0].name.removesuffix("-logs.csv"))
    arguments = {text(key): cell(value) for key, value in params.items() if key not in RUN_KEYS}
    rows = [{text(name): value for name, value in row.items()} for row in rows]
    return Record(script, root, run_state(root), arguments, rows)


def read_runs(paths: list[Path]) -> list[Record]:
    """All runs at these paths, each once; those that cannot be read are named on stderr. Raises UserError if none."""
    records = []
    for root in dict.fromkeys(run for path in paths for run in find_runs(path)):
        try:
            records.append(read_run(root))
        except UserError as error:
            print(f"left out: {text(error)}", file=sys.stderr)
    if not records:
        raise UserError(f"PATH {' '.join(map(str, paths))}: found no run with a row in its log")
    return records


# --- tables -------------------------------------------------------------------------------------------------------


def best_of(column: str) -> Callable | None:
    """max, min, or None for a column of which no value is better than another."""
    if column.endswith(("acc", "elbo", "_ll")):
        return max
    return min if column.endswith(("nll", "loss")) else None


def metrics_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """`last_<column>` of each column of a log, and `best_<column>` where there is one."""
    metrics = {f"last_{name}": value for name, value in rows[-1].items()}
    for name in rows[0]:
        if best := best_of(name):
            metrics[f"best_{name}"] = best(row[name] for row in rows)
    return metrics


def series(values: list) -> "pd.Series":
    """A column of one kind, which is text where the values are of several."""
    import pandas as pd

    kinds = {type(value) for value in values if value is not None}
    for members, dtype in (({int}, "Int64"), ({int, float}, "float64"), ({bool}, "boolean")):
        if kinds and kinds <= members:
            return pd.Series(values, dtype=dtype)
    return pd.Series([None if value is None else str(value) for value in values], dtype="string")


def frame(rows: list[dict[str, Any]], columns: list[str]) -> "pd.DataFrame":
    """Rows as a table; a column that a row does not have is empty there."""
    import pandas as pd

    return pd.DataFrame({name: series([row.get(name) for row in rows]) for name in columns})


def runs_table(records: list[Record]) -> "pd.DataFrame":
    """A row per run, in the order of the records."""
    metrics = [metrics_of(record.rows) for record in records]
    rows = [
        record.arguments | m | dict(zip(OWN, (record.script, text(record.root.name), record.state), strict=True))
        for record, m in zip(records, metrics, strict=True)
    ]
    parts = [*(record.arguments for record in records), *metrics]
    return frame(rows, list(dict.fromkeys((*OWN, *(name for part in parts for name in part)))))


def grouped(records: list[Record], by: list[str]) -> dict[tuple, list[Record]]:
    """The finished runs by script and their values of the arguments `by`. Raises UserError where no run has such."""
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
    """n, mean, std (n - 1) and the 95% interval of the mean by Student's t; std and interval are empty for n = 1."""
    from scipy import stats

    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return {"n": 1, "mean": mean, "std": None, "low": None, "high": None}
    std = statistics.stdev(values)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * std / n**0.5
    return {"n": n, "mean": mean, "std": std, "low": mean - half, "high": mean + half}


def groups_table(groups: dict[tuple, list[Record]], by: list[str]) -> "pd.DataFrame":
    """A row per group and metric."""
    rows = []
    for key, members in groups.items():
        metrics = [metrics_of(record.rows) for record in members]
        for name in dict.fromkeys(name for m in metrics for name in m):
            values = [m[name] for m in metrics if name in m]
            rows.append(dict(zip(("script", *by), key, strict=True)) | {"metric": name} | summary(values))
    return frame(rows, list(dict.fromkeys(("script", *by, "metric", "n", "mean", "std", "low", "high"))))


def warn(records: list[Record], groups: dict[tuple, list[Record]]) -> None:
    """Say what makes the groups smaller than the runs, or the intervals narrower than they are."""
    members = [record for group in groups.values() for record in group]
    if len(members) < len(records):
        print(f"{len(records) - len(members)} runs are not finished: in no group", file=sys.stderr)
    distinct = {(r.script, *((k, v) for k, v in r.arguments.items() if k not in NOT_NUMBERS)) for r in members}
    if len(distinct) < len(members):
        twice = len(members) - len(distinct)
        print(f"{twice} runs repeat the arguments of another: they are no independent repetitions", file=sys.stderr)


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("path", metavar="PATH", nargs="*", type=Path, help="DWP_PATH, the default, or sweeps, or runs")
    parser.add_argument("--by", nargs="+", default=[], metavar="ARGUMENT", help="arguments whose values make a group")
    parser.add_argument("--out", type=Path, help="folder for the tables; the first PATH's collected/ where not given")
    parser.add_argument("--html", action="store_true", help="write page.html too")
    args = parser.parse_args(argv)
    require_packages("collect", "pandas", "pyarrow")
    paths = args.path or [dwp_path()]
    out = args.out or paths[0] / "collected"
    records = read_runs(paths)
    groups = grouped(records, args.by)
    # After the arguments, so that a mistake in them answers at once.
    import tabulate

    tables = {"runs": runs_table(records), "groups": groups_table(groups, args.by)}
    warn(records, groups)
    shown = tables["groups"][tables["groups"]["metric"].str.match("last_.*test_(?!loss)")]
    print(
        tabulate.tabulate(shown.astype(object).where(shown.notna(), ""), shown.columns, showindex=False, floatfmt=".4g")
    )
    files = {}
    for name, table in tables.items():
        files[f"{name}.csv"] = table.to_csv(index=False, lineterminator="\n").encode()
        files[f"{name}.parquet"] = table.to_parquet(engine="pyarrow", index=False)
    if args.html:
        from experiments.page import page

        files["page.html"] = page(records, groups, args.by, tables).encode()
    for name, content in files.items():
        with write_whole(out / name) as file:
            file.write(content)
    print(f"{len(records)} runs, {len(groups)} groups: {', '.join(files)} in {out}")


if __name__ == "__main__":
    main()
