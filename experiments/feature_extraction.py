"""The paper's figure of random features: test accuracy of a classifier on frozen convs against their scale.

    python -m experiments.feature_extraction --scale smoke|laptop|paper [--out DIR] [--report FILE.md] [-- --cpus 1]

An fconv of scale k, on MNIST, has 256 k and 512 k channels; a cifarnet, on CIFAR-10, has the `model_size` k. The convs
hold kernels that the VAEs of data/fconv or data/cifar decode ("dwp"), their source kernels ("filters"), or Xavier's,
and stay as they are; the classifier and the batch norms learn from all images, with the same settings for all three.
The figure, `feature_extraction.png` and `.pdf`, has means and standard deviations over seeds; values read off the
paper's figure are hollow and dashed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.paper import (
    CIFARNET,
    INITS,
    Experiment,
    init_options,
    mean_curve,
    mean_text,
    parse,
    published,
    write_report,
)
from runs.errors import one_line_errors
from runs.log import read_rows

SCRIPT = "train-net.py"
CHANNELS = (256, 512)  # of the fconv of scale 1


class Part(NamedTuple):
    """The networks on one data set: 1 / k of each scale, seeds, arguments, and the names of their convs' kernels."""

    fractions: Sequence[int]
    seeds: Sequence[int]
    shared: str
    convs: Sequence[str] = ("7x7", "5x5")

    def size_option(self, fraction: int) -> str:
        """The option of a network of the scale 1 / fraction."""
        if self.convs == CIFARNET:
            return f"--model_size {1 / fraction:g}"
        return f"--hid_dim {' '.join(str(channels // fraction) for channels in CHANNELS)}"


ALL = (16, 8, 4, 2, 1)
MNIST = "--data mnist --model fconv --rfe 1 --eval_freq 0"
COLOUR = "--data {cifar10} --model cifarnet --rfe 1 --eval_freq 0"
# By scale and part, which has the name of its data in published.csv.
SCALES = {
    "smoke": {"mnist": Part((16, 8), (1, 2), f"{MNIST} --num_examples 200 --epochs 2")},
    "laptop": {
        "mnist": Part(ALL, range(1, 6), f"{MNIST} --epochs 60 --precision auto"),
        "cifar10": Part((8, 4, 2), range(1, 4), f"{COLOUR} --epochs 10 --precision auto", CIFARNET),
    },
    "paper": {
        "mnist": Part(ALL, range(1, 11), f"{MNIST} --epochs 100"),
        "cifar10": Part(ALL[1:], range(1, 11), f"{COLOUR} --epochs 100", CIFARNET),
    },
}


def accuracies(experiment: Experiment, data: str, init: str, options: str) -> tuple[list[list[float]], list[Path]]:
    """The test accuracies of all seeds of each scale on some data, and the run directories; `options` are of `init`."""
    part = SCALES[experiment.scale][data]
    shared = f"{part.shared} {options}"
    lines = [f"{shared} {part.size_option(n)} --seed {seed}" for n in part.fractions for seed in part.seeds]
    roots = experiment.run(f"{data}-{init}", SCRIPT, lines)
    values, seeds = [read_rows(root / f"{SCRIPT}-logs.csv")[-1]["test_acc"] for root in roots], len(part.seeds)
    return [values[i : i + seeds] for i in range(0, len(values), seeds)], roots


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    experiment = parse("feature_extraction", __doc__, SCALES, argv, data=("cifar10",))
    roots: list[Path] = []
    panels, tables = {}, {}
    parts = {data: SCALES[experiment.scale][data] for data in experiment.parts}
    inits = {data: {init: init_options(init, part.convs) for init in INITS} for data, part in parts.items()}
    for data, part in parts.items():
        fractions = part.fractions
        names = [f"1/{n}" if n > 1 else "1" for n in fractions]
        headers = ["k", *(word for init in INITS for word in (f"{init}: mean ± std (n)", "published"))]
        rows, curves = [[name] for name in names], []
        for init, options in inits[data].items():
            found, own = accuracies(experiment, data, init, options)
            roots += own
            paper = published("feature_extraction", data, init)
            paper = {name: paper[f"k={name}"] for name in names if f"k={name}" in paper}
            for row, name, values in zip(rows, names, found, strict=True):
                row += [mean_text(values, 4), f"{paper[name]:g}" if name in paper else ""]
            curves.append(mean_curve(init, names, found, list(paper.items())))
        panels[f"{data}: test accuracy"] = curves
        tables[f"{data}, test accuracy:"] = [headers, *rows]
    write_report(experiment, tables, roots, panels, "scale k of the channels")


if __name__ == "__main__":
    main()
