"""Measure this code against a textbook's, in alternation in one process.

    python -m benchmarks [--quick] [--rows WORD ...] [--repeats 5]

Prints a table with the median seconds of both sides, the speed-up, and the peak memory of one call of either side: in a
process of its own, above what is resident before the call (Linux). A row is printed when it is measured. The rates of
the exact KL and of this machine follow. `--quick` runs everything once on tiny sizes, to see that it runs; its times
mean nothing.
"""

import os
import platform
import statistics
import sys

from runs.errors import UserError, one_line_errors
from runs.options import Parser
from runs.types import WHOLE

COLUMNS = {"textbook, s": ".4f", "ours, s": ".4f", "times faster": ".1f", "textbook, MB": ".0f", "ours, MB": ".0f"}
NAME_WIDTH = 44  # characters
NO_BFLOAT16 = "not measured: this CPU does not compute in bfloat16"


def table_line(name: str, *cells: str) -> str:
    """A line of a Markdown table; cells that a line lacks at its end are empty."""
    return f"| {' | '.join([f'{name:<{NAME_WIDTH}}', *cells])} |"


@one_line_errors
def main(argv: list[str] | None = None) -> list[list]:
    """Print the table, and return its rows: the name and five numbers, or the name and why there are none."""
    parser = Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once: a check, not a measurement")
    parser.add_argument("--rows", nargs="*", default=[], help="only rows whose name contains one of these words")
    parser.add_argument("--repeats", type=WHOLE, default=5, help="measurements of either side of each row")
    args = parser.parse_args(argv)
    # After the arguments, so that a mistake in them is answered at once.
    import torch
    from tqdm import tqdm

    from benchmarks.comparisons import COMPARISONS, CPU, flop_rates
    from benchmarks.measure import SIDES, in_new_process, seconds_and_memory
    from runs.device import has_bfloat16

    rows = [(make, make(args.quick)) for make in COMPARISONS]
    rows = [row for row in rows if any(word in row[1].name for word in args.rows or [""])]
    if not rows:
        raise UserError(f"--rows: found no row with {' or '.join(args.rows)} in its name")

    threads, cpus = torch.get_num_threads(), os.cpu_count()
    print(f"torch {torch.__version__}, {threads} threads, {platform.machine()}, {cpus} CPUs\n")
    print(table_line("computation", *COLUMNS))
    print(table_line("-" * NAME_WIDTH, *("-" * len(column) for column in COLUMNS)), flush=True)
    warm_ups, repeats = (0, 1) if args.quick else (1, args.repeats)
    table = []
    for make, comparison in tqdm(rows, desc="rows", disable=None):
        if comparison.precision == "bf16" and not has_bfloat16(CPU):
            values = cells = [NO_BFLOAT16]
        else:
            times = [[comparison.seconds(side) for side in SIDES] for _ in range(warm_ups + repeats)][warm_ups:]
            textbook, ours = (statistics.median(column) for column in zip(*times, strict=True))
            memory = [in_new_process(seconds_and_memory, side, make, args.quick)[1] for side in SIDES]
            values = [textbook, ours, textbook / ours, *memory]
            cells = [f"{v:{len(column)}{f}}" for v, (column, f) in zip(values, COLUMNS.items(), strict=True)]
        tqdm.write(table_line(comparison.name, *cells), file=sys.stdout)
        sys.stdout.flush()
        table.append([comparison.name, *values])
    kl_rate, convolution_rate, product_rate = flop_rates(args.quick)
    print(f"\nfp32 GFLOP/s: exact KL of conv2 {kl_rate:.0f}")
    print(f"a large convolution {convolution_rate:.0f}, of which the KL reaches {kl_rate / convolution_rate:.0%}")
    print(f"a large matrix product {product_rate:.0f}, of which the KL reaches {kl_rate / product_rate:.0%}")
    return table


if __name__ == "__main__":
    sys.argv[0] = "python -m benchmarks"  # the name in the help and in messages
    main()
