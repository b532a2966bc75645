"""The paper's figure of convergence: a test metric against steps, for three initializations of the convs.

    python -m experiments.convergence --scale smoke|laptop|paper [--out DIR] [--report FILE.md] [-- --cpus 1]

The networks are an image VAE (`train-image-vae.py`) and an fconv, both on MNIST, and a cifarnet on CIFAR-10. The
initializations are kernels that the VAEs of data/fconv or data/cifar decode ("dwp"), their source kernels ("filters"),
and Xavier's. Adam's rate is constant, 0.001, and the same for all three. The figure, `convergence.png` and `.pdf`, has
means over seeds after step 1, and bands of one standard deviation; points read off the paper's figure are hollow.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.paper import CIFARNET, INITS, init_options, mean_curve, mean_text, parse, published, write_report
from runs.errors import one_line_errors
from runs.log import read_rows


class Task(NamedTuple):
    """A training whose convergence is compared.

    script, shared : of all runs, without the initialization.
    convs : the names of their kernels.
    column, ylabel : of the log, and what it is.
    seeds : of each initialization.
    steps : at which the table has the metric.
    target : a value of the metric; the table has the first step that reaches it.
    digits : of the metric in the table.
    """

    script: str
    shared: str
    convs: Sequence[str]
    column: str
    ylabel: str
    seeds: Sequence[int]
    steps: Sequence[int] = ()
    target: float | None = None
    digits: int = 1


# One epoch of the fconv has 300 steps, one of the cifarnet 400; four epochs of the image VAE have 1,000.
IMAGE_VAE = Task(
    "experiments/train-image-vae.py",
    "--data mnist --bs 240 --epochs 4 --eval_freq 50 --precision auto",
    ("7x7", "5x5", "5x5", "7x7"),
    "test_elbo",
    "image VAE: test ELBO, nats per image",
    range(1, 11),
    steps=(200, 1000),
)
FCONV = Task(
    "train-net.py",
    "--data mnist --bs 200 --epochs 1 --fastconv 1 --eval_freq 10 --model fconv --hid_dim 64 128",
    ("7x7", "5x5"),
    "test_acc",
    "fconv: test accuracy",
    range(1, 11),
    target=0.96,
    digits=3,
)
COLOUR = Task(
    "train-net.py",
    "--data {cifar10} --bs 125 --epochs 1 --fastconv 1 --eval_freq 20 --model cifarnet --model_size 0.25",
    CIFARNET,
    "test_acc",
    "cifarnet: test accuracy",
    range(1, 4),
    steps=(100, 400),
    digits=3,
)
SMOKE = {"seeds": (1, 2), "steps": (10,)}
GREY = {"mnist-vae": IMAGE_VAE, "mnist": FCONV}
# By scale and part, which has the name of its data in published.csv.
SCALES = {
    "smoke": {
        "mnist-vae": IMAGE_VAE._replace(
            shared="--data mnist --hid_dim 2 2 --bs 6000 --epochs 1 --eval_freq 5", **SMOKE
        ),
        "mnist": FCONV._replace(shared="--data mnist --hid_dim 2 2 --bs 6000 --epochs 1 --fastconv 1", **SMOKE),
    },
    "laptop": {**GREY, "cifar10": COLOUR},
    "paper": {**GREY, "cifar10": COLOUR._replace(shared=COLOUR.shared.replace("0.25", "1"), seeds=range(1, 11))},
}


def first_step(curve: Mapping[int, float], target: float) -> float:
    """The first step of a curve, values by step, at which it reaches a target; infinite if it does not."""
    return min((step for step, value in curve.items() if value >= target), default=float("inf"))


def compare(data: str, task: Task, curves: Mapping[str, list[dict[int, float]]]) -> list[list[str]]:
    """The table of a task on some data, with its headers, from the curves of each initialization, values by step."""
    headers = ["initialization", *(f"at step {step}" for step in task.steps)]
    headers += [f"steps to {task.target:g}"] if task.target else []
    headers = [headers[0], *(word for header in headers[1:] for word in (f"{header}: mean ± std (n)", "published"))]
    rows = []
    for init, own in curves.items():
        paper = published("convergence", data, init)
        row = [init]
        for step in task.steps:
            bound = paper.get(f"bound at step {step}")
            row += [mean_text([curve[step] for curve in own], task.digits), "" if bound is None else f"{bound:g}"]
        if task.target:
            steps = [first_step(curve, task.target) for curve in own]
            missed = sum(map(math.isinf, steps))
            text = f"not by {missed} of {len(steps)}" if missed else mean_text(steps, 0)
            row += [text, f"{paper[f'steps to {task.target:g} test accuracy']:g}"]
        rows.append(row)
    return [headers, *rows]


def published_points(data: str, task: Task, init: str) -> list[tuple[float, float]]:
    """The points (step, metric) that were read off the paper's figure."""
    paper = published("convergence", data, init)
    if task.target:
        return [(steps, task.target) for steps in paper.values()]
    return [(int(setting.split()[-1]), value) for setting, value in paper.items()]


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    experiment = parse("convergence", __doc__, SCALES, argv, data=("cifar10",))
    roots: list[Path] = []
    panels, tables = {}, {}
    tasks = {data: SCALES[experiment.scale][data] for data in experiment.parts}
    inits = {data: [init_options(init, task.convs) for init in INITS] for data, task in tasks.items()}
    for data, task in tasks.items():
        lines = [f"{task.shared} {options} --seed {seed}" for options in inits[data] for seed in task.seeds]
        found = experiment.run(data, task.script, lines)
        roots += found
        logs = [read_rows(root / f"{Path(task.script).name}-logs.csv") for root in found]
        every = [{row["t"]: row[task.column] for row in rows} for rows in logs]
        n = len(task.seeds)
        curves = {init: every[i * n : (i + 1) * n] for i, init in enumerate(INITS)}
        tables[task.ylabel] = compare(data, task, curves)
        panels[task.ylabel] = []
        for init, own in curves.items():
            steps = list(own[0])[1:]  # the values at step 1 are so low that the others would look the same
            values = [[curve[step] for curve in own] for step in steps]
            panels[task.ylabel].append(mean_curve(init, steps, values, published_points(data, task, init)))
    write_report(experiment, tables, roots, panels, "steps", bands=True)


if __name__ == "__main__":
    main()
