"""The paper's figure of random features: test accuracy of a classifier on frozen convs against their scale.

    python -m experiments.feature_extraction --scale smoke|laptop|paper [--out DIR] [--report FILE.md] [-- --cpus 1]

An fconv of scale k, on MNIST, has 256 k and 512 k channels; a cifarnet, on CIFAR-10, has the `model_size` k. The convs
hold kernels that the VAEs of data/fconv or data/cifar decode ("dwp"), their source kernels ("filters"), or Xavier's,
and stay as they are; the classifier and the batch norms learn from all images, with the same settings for all three. In
the parts `-rates` each kind of kernels has at each scale the one of five rates that is best on training images that are
held out. The figure, `feature_extraction.png` and `.pdf`, has means and standard deviations over seeds; values read off
the paper's figure are hollow and dashed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.paper import (
    CIFARNET,
    INITS,
    RATES,
    mean_curve,
    mean_text,
    parse,
    part_title,
    prepared,
    published,
    train_all,
    with_rates,
    write_report,
)
from runs.errors import one_line_errors

CHANNELS = (256, 512)  # of the fconv of scale 1


class Part(NamedTuple):
    """The networks on one data set.

    data : its name in published.csv.
    images, seeds, convs, rates, script, column : as in `experiments.paper.Part`.
    fractions : 1 / k of each scale.
    shared : arguments of all runs, without images, initialization, scale, rate and seed.
    """

    data: str
    images: str
    fractions: Sequence[int]
    seeds: Sequence[int]
    shared: str
    convs: Sequence[str] = ("7x7", "5x5")
    rates: Sequence[float] = ()
    script: str = "train-net.py"
    column: str = "test_acc"

    def size_option(self, fraction: int) -> str:
        """The option of a network of the scale 1 / fraction."""
        if self.convs == CIFARNET:
            return f"--model_size {1 / fraction:g}"
        return f"--hid_dim {' '.join(str(channels // fraction) for channels in CHANNELS)}"


ALL = (16, 8, 4, 2, 1)
MNIST = "--model fconv --rfe 1 --eval_freq 0"
COLOUR = "--model cifarnet --rfe 1 --eval_freq 0"
SMALL = Part("mnist", "mnist", (16, 8), (1, 2), f"{MNIST} --num_examples 200 --epochs 2")


# By scale and part.
SCALES = {
    "smoke": with_rates((SMALL,), RATES[:2]),
    "laptop": with_rates(
        (
            Part("mnist", "mnist", ALL, range(1, 6), f"{MNIST} --epochs 60 --precision auto"),
            Part("cifar10", "{cifar10}", (8, 4, 2), range(1, 4), f"{COLOUR} --epochs 10 --precision auto", CIFARNET),
        )
    ),
    "paper": with_rates(
        (
            Part("mnist", "mnist", ALL, range(1, 11), f"{MNIST} --epochs 100"),
            Part("cifar10", "{cifar10}", ALL[1:], range(1, 11), f"{COLOUR} --epochs 100", CIFARNET),
        )
    ),
}


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    experiment = parse("feature_extraction", __doc__, SCALES, argv, data=("cifar10",))
    roots: list[Path] = []
    panels, tables = {}, {}
    parts = {name: SCALES[experiment.scale][name] for name in experiment.parts}
    inits = prepared(experiment, parts)
    for name, part in parts.items():
        runs = [f"{part.shared} {own} {part.size_option(n)}" for own in inits[name] for n in part.fractions]
        rates, logs, found = train_all(experiment, name, part, runs)
        roots += found
        accuracies = [[rows[-1][part.column] for rows in own] for own in logs]
        scales = [f"1/{n}" if n > 1 else "1" for n in part.fractions]
        headers = ["k", *(word for init in INITS for word in (f"{init}: rate", "mean ± std (n)", "published"))]
        rows, curves = [[scale] for scale in scales], []
        for i, init in enumerate(INITS):
            own = slice(i * len(scales), (i + 1) * len(scales))
            paper = published("feature_extraction", part.data, init)
            paper = {scale: paper[f"k={scale}"] for scale in scales if f"k={scale}" in paper}
            for row, scale, rate, values in zip(rows, scales, rates[own], accuracies[own], strict=True):
                row += [f"{rate:g}", mean_text(values, 4), f"{paper[scale]:g}" if scale in paper else ""]
            curves.append(mean_curve(init, scales, accuracies[own], list(paper.items())))
        title = part_title(f"{part.data}: test accuracy", part)
        panels[title] = curves
        tables[title] = [headers, *rows]
    rows = len({bool(part.rates) for part in parts.values()})
    caption = "Bars: one standard deviation over seeds. Hollow and dashed: read off the paper's figure."
    write_report(experiment, tables, roots, panels, "scale k of the channels", caption, rows=rows)


if __name__ == "__main__":
    main()
