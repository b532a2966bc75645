r"""Collect the kernels of source networks, prune those whose norm is almost zero, and write the VAE's data sets.

    python -m experiments.extract_kernels --runs 'logs/exman-train-net.py/runs/*' --out data/fconv \
        --min_norm_7x7 0.2 --min_norm_5x5 0.13 [--figure norms.png]

Prints histograms of norms: without thresholds those of all kernel sizes, and nothing is written, so a first call shows
where the valley between pruned and structured kernels lies; else those of the sizes with one. Of near-duplicates in
one network the first is kept.
"""

import glob
from pathlib import Path
from typing import TYPE_CHECKING

from models.configs import VAE_KERNEL_SIZES
from runs import Parser, UserError, command, number, write_whole

if TYPE_CHECKING:
    import numpy as np

BINS = 30
BAR = 50  # characters of the longest bar
TEST_SHARE = 0.2


def text_histogram(norms: "np.ndarray") -> str:
    """Norms counted in logarithmic bins, one line each: lower edge, count, bar (length by the count's square root)."""
    import numpy as np

    edges = np.geomspace(max(norms.min(), 1e-6), max(norms.max(), 1e-5) * 1.0001, BINS + 1)
    counts, edges = np.histogram(np.maximum(norms, edges[0]), edges)
    scale = BAR / np.sqrt(counts.max())
    return "\n".join(
        f"{edge:10.3g} {count:8d} {'#' * round(scale * np.sqrt(count))}"
        for edge, count in zip(edges[:-1], counts, strict=True)
    )


def find_models(patterns: list[str]) -> list[Path]:
    """The model.torch files of the run directories that the globs match, sorted by glob. Raises UserError if none."""
    folders = (folder for pattern in patterns for folder in sorted(glob.glob(pattern)) if Path(folder).is_dir())
    models = list(dict.fromkeys(Path(folder) / "model.torch" for folder in folders))
    missing = [model for model in models if not model.is_file()]
    if missing:
        raise UserError(f"--runs: {missing[0]} is missing, expected a run directory of train-net.py")
    if not models:
        raise UserError(f"--runs: found no folder at {' '.join(patterns)}, expected run directories of train-net.py")
    return models


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--runs", nargs="+", required=True, help="run directories of train-net.py, or globs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write conv7x7/ and conv5x5/ into")
    for k in VAE_KERNEL_SIZES:
        parser.add_argument(f"--min_norm_{k}x{k}", type=number(float, 0), help="kernels of at least this norm are kept")
    parser.add_argument(
        "--near",
        type=number(float, 0, 1),
        default=0.05,
        help="kernels of one network closer than this, relative to the larger norm, count as one",
    )
    parser.add_argument("--figure", type=Path, metavar="PNG", help="picture of the histograms and thresholds")
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=42, help="seed of the 80/20 split")
    args = parser.parse_args(argv)

    models = find_models(args.runs)
    # After the arguments, so that a mistake in them answers at once.
    import numpy as np
    import torch

    import utils

    networks = [utils.get_kernels(utils.load_state(model, f"--runs {model}")) for model in models]
    found = {k for network in networks for k in network} & set(VAE_KERNEL_SIZES)
    thresholds = {
        k: threshold for k in VAE_KERNEL_SIZES if (threshold := getattr(args, f"min_norm_{k}x{k}")) is not None
    }
    for k in thresholds:
        if k not in found:
            raise UserError(f"--min_norm_{k}x{k}: the {len(models)} networks have no {k}x{k} kernels")
    if not found:
        raise UserError(f"--runs: the {len(models)} networks have no kernels of a size in {VAE_KERNEL_SIZES}")
    data_sets, norms = {}, {}
    for k in sorted(thresholds or found, reverse=True):
        sources = [network[k] for network in networks if k in network]
        norms[k] = torch.cat(sources).flatten(1).norm(dim=1).numpy()
        print(f"\n{k}x{k}: {len(norms[k])} kernels of {len(sources)} networks; norm, count")
        print(text_histogram(norms[k]))
        if k not in thresholds:
            continue
        pruned = [utils.prune_kernels(kernels, thresholds[k]) for kernels in sources]
        kept = torch.cat([utils.drop_near_duplicates(kernels, args.near) for kernels in pruned])
        n = sum(map(len, pruned))
        print(f"norm >= {thresholds[k]:g}: {n} of {len(norms[k])}, {n - len(kept)} of them near-duplicates")
        if len(kept) < 5:
            raise UserError(
                f"--min_norm_{k}x{k}: {thresholds[k]:g} keeps {len(kept)} kernels, expected at least 5 to split"
            )
        order = np.random.default_rng(args.seed).permutation(len(kept))
        n_test = round(TEST_SHARE * len(kept))
        data_sets[k] = {"test": kept[order[:n_test]], "train": kept[order[n_test:]]}

    for k, parts in data_sets.items():
        for part, kernels in parts.items():
            path = args.out / f"conv{k}x{k}" / f"{part}.npy"
            with write_whole(path) as file:
                np.save(file, kernels.numpy().astype(np.float32), allow_pickle=False)
            print(f"{path}: {tuple(kernels.shape)}")
    if args.figure:
        from experiments.plots import plot_norms, save

        save(plot_norms(norms, thresholds), args.figure)
        print(args.figure)


if __name__ == "__main__":
    main()
