"""The paper's figure of convergence: a test metric against steps, for three initializations of the convs.

    python -m experiments.convergence --scale smoke|laptop|paper [--out DIR] [--report FILE.md] [-- --cpus 1]

The networks are an image VAE (`train-image-vae.py`) and an fconv, both on MNIST, and a cifarnet on CIFAR-10. The
initializations are kernels that the VAEs of data/fconv or data/cifar decode ("dwp"), their source kernels ("filters"),
and Xavier's. Adam's rate is constant: 0.001 for all three. In the parts `-rates` each initialization has the one of
five rates whose metric, averaged over the evaluations of a run, is best on a sixth of the training images, which is
held out; such a run has five sixths of the steps. The figure, `convergence.png` and `.pdf`, has means over seeds after
step 1, and bands of one standard deviation; points read off the paper's figure are hollow.
"""

import math
from collections.abc import Mapping, Sequence
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


class Task(NamedTuple):
    """A training whose convergence is compared.

    data : its name in published.csv.
    images, script, convs, column, seeds, rates : as in `experiments.paper.Part`.
    shared : arguments of all runs, without images, initialization, rate and seed.
    ylabel : what the column is.
    steps : at which the table has the metric.
    target : a value of the metric; the table has the first step that reaches it.
    floor : the lower end of the figure's y-axis, so that the curves can be told apart near the target.
    digits : of the metric in the table.
    """

    data: str
    images: str
    script: str
    shared: str
    convs: Sequence[str]
    column: str
    ylabel: str
    seeds: Sequence[int]
    steps: Sequence[int] = ()
    target: float | None = None
    floor: float | None = None
    digits: int = 1
    rates: Sequence[float] = ()


# One epoch of the fconv has 300 steps, one of the cifarnet 400; four epochs of the image VAE have 1,000.
IMAGE_VAE = Task(
    "mnist-vae",
    "mnist",
    "experiments/train-image-vae.py",
    "--bs 240 --epochs 4 --eval_freq 50 --precision auto",
    ("7x7", "5x5", "5x5", "7x7"),
    "test_elbo",
    "image VAE: test ELBO, nats per image",
    range(1, 11),
    steps=(200, 1000),
)
FCONV = Task(
    "mnist",
    "mnist",
    "train-net.py",
    "--bs 200 --epochs 1 --fastconv 1 --eval_freq 10 --model fconv --hid_dim 64 128",
    ("7x7", "5x5"),
    "test_acc",
    "fconv: test accuracy",
    range(1, 11),
    steps=(300,),
    target=0.96,
    floor=0.9,
    digits=3,
)
COLOUR = Task(
    "cifar10",
    "{cifar10}",
    "train-net.py",
    "--bs 125 --epochs 1 --fastconv 1 --eval_freq 20 --model cifarnet --model_size 0.25",
    CIFARNET,
    "test_acc",
    "cifarnet: test accuracy",
    range(1, 4),
    steps=(100, 400),
    digits=3,
)
SMOKE = {"seeds": (1, 2), "steps": (10,)}
SMALL = FCONV._replace(shared="--hid_dim 2 2 --bs 6000 --epochs 1 --fastconv 1", **SMOKE)


# By scale and part.
SCALES = {
    "smoke": {
        "mnist-vae": IMAGE_VAE._replace(shared="--hid_dim 2 2 --bs 6000 --epochs 1 --eval_freq 5", **SMOKE),
        **with_rates((SMALL,), RATES[:2]),
    },
    "laptop": with_rates((IMAGE_VAE, FCONV, COLOUR), seeds=5),
    "paper": with_rates(
        (IMAGE_VAE, FCONV, COLOUR._replace(shared=COLOUR.shared.replace("0.25", "1"), seeds=range(1, 11)))
    ),
}


def first_step(curve: Mapping[int, float], target: float) -> float:
    """The first step of a curve, values by step, at which it reaches a target; infinite if it does not."""
    return min((step for step, value in curve.items() if value >= target), default=float("inf"))


def compare(task: Task, curves: Mapping[str, list[dict[int, float]]], rates: Sequence[float]) -> list[list[str]]:
    """The table of a task, with its headers, from the curves of each initialization, values by step, and its rate."""
    headers = [f"at step {step}" for step in task.steps]
    headers += [f"steps to {task.target:g}"] if task.target else []
    headers = [word for header in headers for word in (f"{header}: mean ± std (n)", "published")]
    headers = ["initialization", "rate", *headers]
    rows = []
    for (init, own), rate in zip(curves.items(), rates, strict=True):
        paper = published("convergence", task.data, init)
        row = [init, f"{rate:g}"]
        for step in task.steps:
            bound = paper.get(f"bound at step {step}")
            values = [curve[step] for curve in own if step in curve]  # a data set of fewer images has fewer steps
            row += [mean_text(values, task.digits) if values else "", "" if bound is None else f"{bound:g}"]
        if task.target:
            steps = [first_step(curve, task.target) for curve in own]
            missed = sum(map(math.isinf, steps))
            text = f"not by {missed} of {len(steps)}" if missed else mean_text(steps, 0)
            row += [text, f"{paper[f'steps to {task.target:g} test accuracy']:g}"]
        rows.append(row)
    return [headers, *rows]


def published_points(task: Task, init: str) -> list[tuple[float, float]]:
    """The points (step, metric) that were read off the paper's figure."""
    paper = published("convergence", task.data, init)
    if task.target:
        return [(steps, task.target) for steps in paper.values()]
    return [(int(setting.split()[-1]), value) for setting, value in paper.items()]


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    experiment = parse("convergence", __doc__, SCALES, argv, data=("cifar10",))
    roots: list[Path] = []
    panels, tables, floors = {}, {}, {}
    tasks = {part: SCALES[experiment.scale][part] for part in experiment.parts}
    inits = prepared(experiment, tasks)
    for part, task in tasks.items():
        rates, logs, found = train_all(experiment, part, task, [f"{task.shared} {options}" for options in inits[part]])
        roots += found
        curves = {
            init: [{row["t"]: row[task.column] for row in rows} for rows in own]
            for init, own in zip(INITS, logs, strict=True)
        }
        title = part_title(task.ylabel, task)
        tables[title] = compare(task, curves, rates)
        floors[title] = task.floor
        panels[title] = []
        for init, own in curves.items():
            steps = list(own[0])[1:]  # the values at step 1 are so low that the others would look the same
            values = [[curve[step] for curve in own] for step in steps]
            panels[title].append(mean_curve(init, steps, values, published_points(task, init)))
    rows = len({bool(task.rates) for task in tasks.values()})
    caption = "Bands: one standard deviation over seeds. Hollow: read off the paper's figure."
    cut = dict.fromkeys(f" Not shown: {task.ylabel} below {task.floor:g}." for task in tasks.values() if task.floor)
    write_report(
        experiment, tables, roots, panels, "steps", "".join([caption, *cut]), bands=True, rows=rows, floors=floors
    )


if __name__ == "__main__":
    main()
