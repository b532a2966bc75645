"""The paper's figure of random features: test accuracy of a classifier on frozen convs against their scale.

    python -m experiments.feature_extraction --scale smoke|laptop|paper [--out DIR] [--report FILE.md] [-- --cpus 1]

An fconv of scale k has 256 k and 512 k channels. Its convs hold kernels that the VAEs of data/fconv decode ("dwp"),
their source kernels ("filters"), or Xavier's, and stay as they are; a linear classifier learns from all of MNIST. The
settings are the same for all three. The figure, `feature_extraction.png` and `.pdf`, has means and standard deviations
over seeds; values read off the paper's figure are dashed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.paper import INITS, init_options, mean_text, parse, published, write_report
from runs.errors import one_line_errors
from runs.log import read_rows

SCRIPT = "train-net.py"
CHANNELS = (256, 512)  # at scale 1
CONVS = ("7x7", "5x5")


class Scale(NamedTuple):
    """The runs of a scale: 1 / k of the networks, seeds of each, and arguments."""

    fractions: Sequence[int]
    seeds: Sequence[int]
    shared: str


SHARED = "--data mnist --model fconv --net_cfg vanilla --rfe 1 --eval_freq 0"
SCALES = {
    "smoke": Scale((16, 8), (1, 2), f"{SHARED} --num_examples 200 --epochs 2"),
    "laptop": Scale((16, 8, 4, 2, 1), range(1, 6), f"{SHARED} --bs 256 --epochs 60 --precision auto"),
    "paper": Scale((16, 8, 4, 2, 1), range(1, 11), f"{SHARED} --bs 256 --epochs 100"),
}


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    experiment = parse("feature_extraction", __doc__, SCALES, argv)
    fractions, seeds, shared = SCALES[experiment.scale]
    names = {n: f"k=1/{n}" if n > 1 else "k=1" for n in fractions}  # as in published.csv
    headers = ["k", *(word for init in INITS for word in (f"{init}: mean ± std (n)", "published"))]
    rows: dict[int, list[str]] = {n: [names[n][2:]] for n in fractions}
    roots: list[Path] = []
    curves = []
    from sweeps.plots import Curve, plot_panels, save
    from sweeps.tables import summary

    for init in INITS:
        options = f"{shared} {init_options(init, CONVS)}"
        widths = {n: " ".join(str(channels // n) for channels in CHANNELS) for n in fractions}
        lines = [f"{options} --hid_dim {widths[n]} --seed {seed}" for n in fractions for seed in seeds]
        found = experiment.run(init, SCRIPT, lines)
        roots += found
        accuracies = [read_rows(root / f"{SCRIPT}-logs.csv")[-1]["test_acc"] for root in found]
        paper, points = published("feature_extraction", "mnist", init), []
        for i, n in enumerate(fractions):
            own = accuracies[i * len(seeds) : (i + 1) * len(seeds)]
            points.append(summary(own))
            rows[n] += [mean_text(own, 4), f"{paper[names[n]]:g}"]
        x, y, spread = ([names[n][2:] for n in fractions], *([p[key] for p in points] for key in ("mean", "std")))
        curves.append(Curve(init, x, y, spread, [(names[n][2:], paper[names[n]]) for n in fractions]))
    figure = plot_panels({"test accuracy": curves}, "scale k: 256 k and 512 k channels")
    save(figure, experiment.out / "feature_extraction.png", vector=True)
    write_report(experiment, {"MNIST, test accuracy": [headers, *rows.values()]}, roots)


if __name__ == "__main__":
    main()
