r"""Extract the kernels of source networks, prune those whose norm is almost zero, and write the VAEs' data sets.

    python -m experiments.extract_kernels --runs 'logs/exman-train-net.py/runs/*' --out data/fconv \
        --min_norm_7x7 0.2 --min_norm_5x5 0.1 [--figure norms.png]

The command prints a histogram of norms for each kernel size, and for each conv where several have this size. Without
thresholds it writes nothing: a first call shows the valley between pruned and structured kernels, where a threshold
belongs. With thresholds it handles only the sizes that have one. Several thresholds of a size are those of its convs,
whose kernels then become data sets of their own: conv5x5-2, conv5x5-3, ... Of near-duplicates in one network the first
is kept.
"""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.configs import VAES
from runs.errors import UserError, one_line_errors, user_error
from runs.files import atomic_write
from runs.options import Parser
from runs.types import number_type

if TYPE_CHECKING:
    import numpy as np

BINS = 30
BAR = 50  # characters of the longest bar


def text_histogram(norms: "np.ndarray") -> str:
    """Norms (n,) counted in logarithmic bins, a line each: lower edge, count, and a bar, as long as its square root."""
    import numpy as np

    edges = np.geomspace(max(norms.min(), 1e-6), max(norms.max(), 1e-5) * 1.0001, BINS + 1)
    counts, edges = np.histogram(np.maximum(norms, edges[0]), edges)
    scale = BAR / np.sqrt(counts.max())
    bars = ["#" * round(scale * np.sqrt(count)) for count in counts]
    return "\n".join(f"{edge:10.3g} {n:8d} {bar}" for edge, n, bar in zip(edges[:-1], counts, bars, strict=True))


def find_models(patterns: list[str]) -> list[Path]:
    """The model.torch files of the run directories that match the globs, sorted by glob. Raises UserError if none."""
    folders = [Path(folder) for pattern in patterns for folder in sorted(glob.glob(pattern))]
    models = list(dict.fromkeys(folder / "model.torch" for folder in folders if folder.is_dir()))
    for model in models:
        if not model.is_file():
            raise UserError(f"--runs: {model} is missing, expected a run directory of train-net.py")
    if not models:
        raise UserError(f"--runs: found no folder at {' '.join(patterns)}, expected run directories of train-net.py")
    return models


def convs_of_size(networks: Sequence[Mapping[str, Any]], k: int) -> list[str]:
    """The names of all convs with k x k kernels, as of `utils.get_kernels`, by number."""
    names = {name for network in networks for name in network if name.startswith(f"{k}x")}
    return sorted(names, key=lambda name: int(name.split("-")[1]))


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--runs", nargs="+", required=True, help="run directories of train-net.py, or globs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write conv7x7/, conv5x5/, ... into")
    for k in VAES:
        help = f"{k}x{k} kernels of at least this norm are kept; several: one for each conv of this size, in order"
        parser.add_argument(f"--min_norm_{k}x{k}", type=number_type(float, 0), nargs="+", default=[], help=help)
    help = "kernels of one network closer than this, relative to the larger norm, count as one"
    parser.add_argument("--near", type=number_type(float, 0, 1), default=0.05, help=help)
    parser.add_argument("--figure", type=Path, metavar="PNG", help="picture of the histograms and thresholds")
    parser.add_argument("--seed", type=number_type(int, 0, 2**32 - 1), default=42, help="seed of the 80/20 split")
    args = parser.parse_args(argv)

    models = find_models(args.runs)
    # After the arguments, so that a mistake in them is answered at once.
    import numpy as np

    import utils
    from runs.checkpoint import load_state

    with user_error("--runs"):
        networks = [utils.get_kernels(load_state(model)) for model in models]
    convs = {k: convs_of_size(networks, k) for k in sorted(VAES, reverse=True)}
    if not any(convs.values()):
        raise UserError(f"--runs: the {len(models)} networks have no kernels of a size in {tuple(VAES)}")
    names, thresholds = [], {}
    for k, own in convs.items():
        given = getattr(args, f"min_norm_{k}x{k}")
        if given and not own:
            raise UserError(f"--min_norm_{k}x{k}: the {len(models)} networks have no {k}x{k} kernels")
        if len(given) > 1 and len(given) != len(own):
            found = f"found {len(given)} thresholds"
            raise UserError(f"--min_norm_{k}x{k}: {found}, expected one, or one for each of {', '.join(own)}")
        together = [f"{k}x{k}"] if own else []
        names += together + (own if len(own) > 1 else [])
        thresholds |= zip(own if len(given) > 1 else together, given, strict=False)
    data_sets, norms = {}, {}
    for name in thresholds or names:
        sources = utils.kernels_named(networks, name)
        norms[name] = np.concatenate([kernels.flatten(1).norm(dim=1).numpy() for kernels in sources])
        print(f"\n{name}: {len(norms[name])} kernels of {len(sources)} networks; norm, count")
        print(text_histogram(norms[name]))
        if name in thresholds:
            min_norm = thresholds[name]
            with user_error(f"--min_norm_{name.split('-')[0]}:"):
                data_sets[name] = utils.extract_kernels(sources, min_norm, args.near, args.seed)
            above = (norms[name] >= min_norm).sum()
            duplicates = above - sum(map(len, data_sets[name].values()))
            print(f"norm >= {min_norm:g}: {above} of {len(norms[name])}, {duplicates} of them near-duplicates")

    for name, parts in data_sets.items():
        for part, kernels in parts.items():
            path = args.out / f"conv{name}" / f"{part}.npy"
            with atomic_write(path) as file:
                np.save(file, kernels.float().numpy(), allow_pickle=False)
            print(f"{path}: {tuple(kernels.shape)}")
    if args.figure:
        from sweeps.plots import plot_norms, save

        save(plot_norms(norms, thresholds), args.figure)
        print(args.figure)


if __name__ == "__main__":
    main()
