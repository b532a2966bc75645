"""How wide the intervals of paired differences are for new splits and new seeds, from the scores of each run.

    python -m experiments.seeds RUNS.csv [RUNS.csv ...] [--first dwp-aug] [--scores acc nll ece]

The files are the runs.csv of `experiments.few_shot`, which has means over seeds, and intervals over splits alone. But
all splits have the same seeds, and a seed draws the kernels at the start. So what a draw does to a difference is in
the mean, and not in such an interval, which holds for these seeds only. Per score and method this prints the
difference from the first method for each seed, the mean, half of its 95% interval over splits, and half of that over
splits and seeds. Accuracy and ECE are in points, the NLL in nats. A method that several files have for a number of
images is read from the first.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.few_shot import PANELS
from runs.errors import UserError, one_line_errors
from runs.options import Parser
from sweeps.tables import LEVEL, standard_error, summary

if TYPE_CHECKING:
    import numpy as np

Runs = dict[tuple[int, int], dict[str, float]]  # the scores of a method's runs, by split and seed


def read_runs(path: Path) -> dict[tuple[int, str], Runs]:
    """The runs in a file, by number of images and method. Raises UserError."""
    found: dict[tuple[int, str], Runs] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                runs = found.setdefault((int(row["num_examples"]), row["method"]), {})
                task = int(row["data_split_seed"]), int(row["seed"])
                if task in runs:
                    raise ValueError(f"found split {task[0]}, seed {task[1]} of {row['method']} twice")
                runs[task] = {score: float(row[score]) for score in PANELS}
    except KeyError as error:
        raise UserError(f"{path}: found no column {error}, expected the runs.csv of experiments.few_shot") from None
    except (TypeError, ValueError, OSError, csv.Error) as error:
        raise UserError(f"{path}: {error}, expected the runs.csv of experiments.few_shot") from None
    if not found:
        raise UserError(f"{path}: found no run, expected the runs.csv of experiments.few_shot")
    return found


def half_intervals(values: "np.ndarray") -> tuple[float, float]:
    """Half of the 95% intervals of the mean of values (splits, seeds): over splits, and over splits and seeds.

    The squared standard errors over splits and over seeds are added, each that of the means over the other. The
    degrees of freedom are those of Welch and Satterthwaite. The noise of a run is counted twice. So with 10 splits and
    3 seeds the interval covers 99% where neither splits nor seeds matter, and 93 to 94% where seeds matter much. An
    interval over one split or one seed is NaN.
    """
    from scipy import stats

    found = [summary(values.mean(axis).tolist()) for axis in (1, 0)]
    squares = [standard_error(means) ** 2 for means in found]
    over_splits, total = found[0]["high"] - found[0]["mean"], sum(squares)
    if not total > 0:
        return over_splits, total
    freedom = total**2 / sum(square**2 / (means["n"] - 1) for square, means in zip(squares, found, strict=True))
    return over_splits, float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * total**0.5


def rows_of(num_examples: int, methods: dict[str, Runs], first: str, scores: Sequence[str]) -> list[list[str]]:
    """The rows of the printed table for a number of images. Raises UserError where a method lacks a run."""
    import numpy as np

    if first not in methods:
        raise UserError(f"--first: found {first}, expected of {', '.join(methods)}")
    tasks = sorted(methods[first])
    splits, seeds = (sorted(set(numbers)) for numbers in zip(*tasks, strict=True))
    if len(tasks) < len(splits) * len(seeds):
        raise UserError(f"{first}: found {len(tasks)} runs, expected one for each of {splits} with each of {seeds}")
    others = {name: runs for name, runs in methods.items() if name != first}
    for name, runs in others.items():
        if sorted(runs) != tasks:
            raise UserError(f"{name}: found other splits or seeds than those of {first}, expected the same")
    rows = []
    for score in scores:
        label, factor = PANELS[score]
        digits = 2 if factor > 1 else 3
        for name, runs in others.items():
            paired = [factor * (methods[first][task][score] - runs[task][score]) for task in tasks]
            values = np.reshape(paired, (len(splits), len(seeds)))
            by_seed = ", ".join(f"{mean:+.{digits}f}" for mean in values.mean(0))
            halves = [f"± {half:.{digits}f}" for half in half_intervals(values)]
            rows.append([str(num_examples), label, name, by_seed, f"{values.mean():+.{digits}f}", *halves])
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
    by_size: dict[int, dict[str, Runs]] = {}
    for path in args.files:
        for (num_examples, method), runs in read_runs(path).items():
            by_size.setdefault(num_examples, {}).setdefault(method, runs)
    first = args.first or next(iter(by_size[next(iter(by_size))]))
    rows = []
    for num_examples, methods in by_size.items():
        rows += rows_of(num_examples, methods, first, args.scores)
    headers = ["images", "score", f"{first} minus", "by seed", "mean", "over splits", "over splits and seeds"]
    print(tabulate.tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
