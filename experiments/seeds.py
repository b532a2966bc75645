"""How wide the intervals of paired differences are for new splits and new seeds, from the scores of each run.

    python -m experiments.seeds RUNS.csv [RUNS.csv ...] [--first dwp-aug] [--scores acc nll ece]

The files are the runs.csv of `experiments.few_shot`, which has means over seeds, and intervals over splits alone. But
all splits have the same seeds, and a seed draws the kernels at the start. So what a draw does to a difference is in
the mean, and not in such an interval, which holds for these seeds only. Per score and method this prints the
difference from the first method for each seed, the mean, half of its 95% interval over splits, and half of that over
splits and seeds. Accuracy and ECE are in points, the NLL in nats. A method that several files have is read from the
first.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.few_shot import PANELS
from runs.errors import UserError, one_line_errors, require_packages
from runs.options import Parser
from sweeps.tables import LEVEL

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

TASK = ["num_examples", "method", "data_split_seed", "seed"]
GRID = {"index": "data_split_seed", "columns": "seed"}


def read_runs(paths: Sequence[Path]) -> "pd.DataFrame":
    """The runs of files, a row per run. Raises UserError."""
    import pandas as pd

    tables = []
    for path in paths:
        try:
            table = pd.read_csv(path, dtype=dict.fromkeys(PANELS, float))
        except (ValueError, OSError) as error:
            raise UserError(f"{path}: {error}, expected the runs.csv of experiments.few_shot") from None
        if table.empty:
            raise UserError(f"{path}: found no run, expected the runs.csv of experiments.few_shot")
        if missing := [name for name in (*TASK, *PANELS) if name not in table]:
            raise UserError(f"{path}: found no column {missing[0]}, expected the runs.csv of experiments.few_shot")
        known = {name for earlier in tables for name in earlier["method"]}
        if (twice := table.duplicated(TASK)).any():
            task = " ".join(map(str, table.loc[twice, TASK].iloc[0]))
            raise UserError(f"{path}: found the run {task} twice, expected it once")
        tables.append(table[~table["method"].isin(known)])
    return pd.concat(tables)


def half_intervals(values: "np.ndarray") -> tuple[float, float]:
    """Half of the 95% intervals of the mean of values (splits, seeds): over splits, and over splits and seeds.

    The squared standard errors over splits and over seeds are added, each that of the means over the other. The
    degrees of freedom are those of Welch and Satterthwaite. Where seeds do not matter, this counts the noise of a run
    twice, and the interval is a little too wide. It is NaN for one seed.
    """
    from scipy import stats

    squares, freedom = [], []
    for axis in (1, 0):
        means = values.mean(axis)
        squares.append(means.var(ddof=1) / len(means) if len(means) > 1 else math.nan)
        freedom.append(len(means) - 1)
    total = sum(squares)
    both = total**2 / sum(s**2 / n for s, n in zip(squares, freedom, strict=True)) if total > 0 else math.nan
    level = (1 + LEVEL) / 2
    over_splits = stats.t.ppf(level, freedom[0]) * squares[0] ** 0.5
    return float(over_splits), float(stats.t.ppf(level, both) * total**0.5)


def rows_of(table: "pd.DataFrame", num_examples: int, first: str, scores: Sequence[str]) -> list[list[str]]:
    """The rows of the printed table for a number of images. Raises UserError where a method lacks a run."""
    own = table[table["num_examples"] == num_examples]
    methods = list(own["method"].unique())
    if first not in methods:
        raise UserError(f"--first: found {first}, expected of {', '.join(methods)}")
    rows = []
    for score in scores:
        label, factor = PANELS[score]
        by_method = {name: own[own["method"] == name] for name in methods}
        grids = {name: factor * runs.pivot(**GRID, values=score) for name, runs in by_method.items()}
        for name, grid in grids.items():
            if name == first:
                continue
            difference = grids[first] - grid  # NaN where one of the two lacks a run
            if difference.isna().any(axis=None):
                raise UserError(f"{name}: found other splits or seeds than those of {first}, expected the same")
            digits = 2 if factor > 1 else 3
            by_seed = ", ".join(f"{mean:+.{digits}f}" for mean in difference.mean())
            halves = [f"± {half:.{digits}f}" for half in half_intervals(difference.to_numpy())]
            mean = f"{difference.to_numpy().mean():+.{digits}f}"
            rows.append([str(num_examples), label, name, by_seed, mean, *halves])
    return rows


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    import tabulate

    parser = Parser(__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="RUNS.csv", help="runs.csv of experiments.few_shot")
    parser.add_argument("--first", help="the method that is compared with each, by default the first of the files")
    help = "accuracy, NLL, expected calibration error"
    parser.add_argument("--scores", choices=tuple(PANELS), nargs="+", default=list(PANELS), help=help)
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    require_packages("seeds", "pandas")
    table = read_runs(args.files)
    first = args.first or table["method"].iloc[0]
    rows = []
    for n in table["num_examples"].unique():
        rows += rows_of(table, n, first, args.scores)
    headers = ["images", "score", f"{first} minus", "by seed", "mean", "over splits", "over splits and seeds"]
    print(tabulate.tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
