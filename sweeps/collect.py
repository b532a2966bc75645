"""Collect runs in one table, with means and intervals per group, and in a page of curves, tables and kernels.

    python -m sweeps.collect logs [--by num_examples prior_list] [--out DIR] [--html]

PATH is a DWP_PATH, the folder of a sweep, or a run directory. Two tables of all PATHs are written, as CSV and Parquet:

- `runs`, a row per run: script, run, state, arguments, and of each column of the run's log `last_<column>` and
  `best_<column>`: the largest accuracy, ELBO or log-likelihood, and the smallest NLL, loss, ECE or Brier score. The
  other columns have no best value. That of a test column was chosen on the test set: it must not be used to select
  runs or epochs.
- `groups`, a row per group and metric: n, mean, std (divisor n - 1), and the 95% interval of the mean by Student's t
  over runs. A group has the finished runs with the same script and the same values of the arguments in `--by`.

Empty and damaged runs are named on stderr and left out. `--html` writes `page.html` too, one file that loads no other.
"""

from collections.abc import Sequence
from pathlib import Path

import tabulate

from runs.directory import dwp_path
from runs.errors import one_line_errors, require_packages
from runs.files import atomic_write
from runs.options import Parser
from sweeps.tables import group_runs, groups_table, print_warnings, read_runs, runs_table

PRINTED = r"last_(.*test_(?!loss)|draws/(acc|nll|ece)$)"


def collect(paths: Sequence[Path], by: Sequence[str], out: Path, html: bool) -> list[Path]:
    """Write the tables of all runs at these paths, and with `html` the page, into `out`, and return the files.

    The values of the arguments `by` make a group. The last test metrics are printed, those by draws of the weights
    among them. Raises UserError.
    """
    records = read_runs(paths)
    groups = group_runs(records, by)
    tables = {"runs": runs_table(records), "groups": groups_table(groups, by)}
    print_warnings(records, groups)
    shown = tables["groups"][tables["groups"]["metric"].str.match(PRINTED)]
    rows = shown.astype(object).where(shown.notna(), "")
    print(tabulate.tabulate(rows, shown.columns, showindex=False, floatfmt=".4g"))
    files = {}
    for name, table in tables.items():
        files[f"{name}.csv"] = table.to_csv(index=False, lineterminator="\n").encode()
        files[f"{name}.parquet"] = table.to_parquet(engine="pyarrow", index=False)
    if html:
        from sweeps.page import page_html

        files["page.html"] = page_html(records, groups, by, tables).encode()
    for name, content in files.items():
        with atomic_write(out / name) as file:
            file.write(content)
    print(f"{len(records)} runs, {len(groups)} groups: {', '.join(files)} in {out}")
    return [out / name for name in files]


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    help = "a DWP_PATH (default: $DWP_PATH), a sweep or a run"
    parser.add_argument("path", metavar="PATH", nargs="*", type=Path, help=help)
    parser.add_argument("--by", nargs="+", default=[], metavar="ARGUMENT", help="arguments whose values make a group")
    parser.add_argument("--out", type=Path, help="folder for the tables, by default collected/ in the first PATH")
    parser.add_argument("--html", action="store_true", help="write page.html too")
    args = parser.parse_args(argv)
    require_packages("collect", "pandas", "pyarrow")
    paths = args.path or [dwp_path()]
    collect(paths, args.by, args.out or paths[0] / "collected", args.html)


if __name__ == "__main__":
    main()
