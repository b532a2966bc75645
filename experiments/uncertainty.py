"""How far predictions from few images can be trusted: calibration, rejection, foreign images, and images that shift.

    python -m experiments.uncertainty --scale smoke|laptop|paper [--settings FILE.yaml] [--out DIR] [--report FILE.md]
        [-- --cpus 1]

The methods, their settings and their runs are those of `experiments.few_shot` with augmented images: what it has
trained is not trained again. Beside them stand ensembles of the networks of several seeds, and temperature scaling (Guo
et al. 2017): the logits are divided by the temperature with the least NLL on the tasks of 50 letters that chose the
method's setting, for all numbers of images, because MNIST's labels choose nothing. Seeds are averaged per split. A
deviation (±) is over splits; that of a paired difference is half of its 95% interval.

- Test images: accuracy, NLL, ECE (expected calibration error), Brier score, and the reliability diagram.
- Rejection: the accuracy on the images that remain when those with the largest entropy are left out.
- Foreign images: the AUROC of MNIST's test images against letters of notMNIST, by the entropy and by the mutual
  information of label and weights. A network that is deterministic has no mutual information. These letters are those
  that chose settings and temperatures, and the kernels of data/fconv come from networks that learnt letters: so they
  are foreign to what a network learnt, and not to how its method was made.
- Shift: test images that are rotated, blurred or noisy, in five strengths.

The predictions of runs are kept in $DWP_PATH/uncertainty-<scale>, so a stopped evaluation continues.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.paper import Experiment, difference_text, mean_text, parse, write_report
from experiments.predictions import Predicted, Predictions, ensemble, predict_run
from experiments.protocol import TUNE_SEEDS, Sweeps, by_split, tune_experiment
from runs.errors import UserError, one_line_errors
from runs.files import write_yaml
from runs.log import write_csv

if TYPE_CHECKING:
    from torch import Tensor

    from sweeps.plots import Curve
    from utils import DataSet

FOREIGN = "not-mnist"
# Strengths: degrees, standard deviation of the blur in pixels, standard deviation of the noise with pixels in [0, 1].
SHIFTS = {
    "rotation": (15, 30, 45, 60, 75),
    "blur": (0.5, 1, 1.5, 2, 2.5),
    "noise": (0.1, 0.2, 0.3, 0.4, 0.5),
}
REJECTED = [i / 20 for i in range(19)]  # shares of the images
SCORES = {"acc": "accuracy", "nll": "NLL, nats", "ece": "ECE", "brier": "Brier"}
AUROCS = {"entropy": "AUROC, entropy", "mutual_information": "AUROC, mutual information"}


class Part(NamedTuple):
    """Training sizes and what is compared.

    methods : names in `experiments.methods`; the first is compared with each.
    ensembles, members : of which methods there is an ensemble of how many networks, with seeds from the first on.
    scaled : methods with deterministic networks that also have a temperature.
    tune_splits, letters : of the tasks that choose settings and temperatures.
    subset : images at most in each shift, and letters.
    """

    num_examples: int
    splits: Sequence[int] = range(10)
    seeds: Sequence[int] = (42,)
    methods: Sequence[str] = ("dwp-aug", "sn-aug", "gauss-aug", "no-aug", "frozen-aug", "l2-aug", "dropout-aug")
    ensembles: Sequence[str] = ("frozen-aug",)
    members: int = 5
    scaled: Sequence[str] = ("frozen-aug", "l2-aug")
    tune_splits: Sequence[int] = range(100, 106)
    letters: int = 50
    subset: int = 1000


PAPER = {"seeds": (42, 43, 44), "ensembles": ("dwp-aug", "map-aug", "frozen-aug"), "subset": 10**6}
SCALES = {
    "smoke": {
        "10": Part(10, (0, 1), (42,), ("frozen-aug", "l2-aug"), members=2, tune_splits=(100,), letters=10, subset=20)
    },
    "laptop": {"50": Part(50), "200": Part(200, range(5))},
    "paper": {str(n): Part(n, **PAPER) for n in (50, 200)},
}


def shifted(images: "Tensor", shift: str, strength: float) -> "Tensor":
    """Images (n, c, h, w) in uint8, rotated by so many degrees, blurred or noisy (see SHIFTS)."""
    import torch
    from torchvision.transforms.v2 import functional as transforms

    if shift == "rotation":
        return transforms.rotate(images, strength, transforms.InterpolationMode.BILINEAR)
    if shift == "blur":
        return transforms.gaussian_blur(images, [2 * round(3 * strength) + 1] * 2, [strength] * 2)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 255 * strength * noise).round().clamp(0, 255).byte()


def evaluated_sets(test: "DataSet", subset: int) -> dict[str, "DataSet"]:
    """All test images as "test", letters as FOREIGN; some test images as "unchanged", and as "<shift> <strength>"."""
    import torch

    import utils

    def some(data: utils.DataSet) -> utils.DataSet:
        return data[torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))[:subset]]

    part = some(test)
    sets = {"test": test, FOREIGN: some(utils.load_data(FOREIGN)[1]), "unchanged": part}
    for shift, strengths in SHIFTS.items():
        for strength in strengths:
            sets[f"{shift} {strength}"] = utils.DataSet(shifted(part.images, shift, strength), part.labels)
    return sets


def scaled(own: Predicted, temperature: float) -> Predicted:
    """The predictions of a deterministic network whose logits are divided by the temperature."""

    from models.metrics import entropy

    log_p = {name: (predictions.log_p / temperature).log_softmax(1) for name, predictions in own.items()}
    return {name: Predictions(values, entropy(values)) for name, values in log_p.items()}


def best_temperature(log_p: Sequence["Tensor"], labels: "Tensor") -> float:
    """The temperature with the least mean NLL of networks' log probabilities (n, n_classes) for labels (n,)."""
    import torch.nn.functional as F
    from scipy.optimize import minimize_scalar

    def nll(log_temperature: float) -> float:
        return sum(F.nll_loss((one.double() / np.exp(log_temperature)).log_softmax(1), labels).item() for one in log_p)

    return float(np.exp(minimize_scalar(nll, bounds=(-5, 5), method="bounded").x))


def measure(predicted: Predicted, sets: dict[str, "DataSet"]) -> dict[str, float]:
    """All numbers of one network: scores by "<images>/<score>", AUROCs, and accuracies by "rejected/<share>"."""
    import torch
    from torchmetrics.functional.classification import binary_auroc

    from models.metrics import scores

    found = {}
    for name, own in predicted.items():
        if name != FOREIGN:
            found |= {f"{name}/{score}": value for score, value in scores(own.log_p, sets[name].labels).items()}
    test, foreign = predicted["test"].uncertainty(), predicted[FOREIGN].uncertainty()
    for kind in AUROCS:
        values = torch.cat([test[kind], foreign[kind]])
        target = torch.arange(len(values)) >= len(test[kind])
        # torchmetrics takes scores in [0, 1].
        found[f"auroc/{kind}"] = binary_auroc(values / values.max().clamp(min=1e-12), target.long()).item()
    found["mutual_information"] = test["mutual_information"].max().item()
    order = test["entropy"].argsort(stable=True)
    right = (predicted["test"].log_p.argmax(1) == sets["test"].labels)[order].double()
    for share in REJECTED:
        found[f"rejected/{share:g}"] = right[: round((1 - share) * len(right))].mean().item()
    return found


def reliability(predicted: Sequence[Predicted], labels: "Tensor") -> tuple[list[float], list[float]]:
    """Mean confidence and accuracy, of all networks together, in bins of equally many images."""
    from sklearn.calibration import calibration_curve

    from models.metrics import BINS

    right = np.concatenate([(own["test"].log_p.argmax(1) == labels).numpy() for own in predicted])
    confidence = np.concatenate([own["test"].log_p.exp().amax(1).clamp(max=1).numpy() for own in predicted])
    # Of bins of equal width the first have so few images that chance decides their accuracy.
    accuracy, mean = calibration_curve(right, confidence, n_bins=BINS, strategy="quantile")
    return mean.tolist(), accuracy.tolist()


def temperature_of(sweeps: Sweeps, name: str, setting: str, part: Part, folder: Path) -> float:
    """The temperature of the networks of a method of this name by its runs on letters with the chosen setting.

    Where these runs chose the setting they are not trained again. Raises UserError where one failed.
    """
    import utils

    method = sweeps.methods[name]
    tasks = (part.letters, part.tune_splits, TUNE_SEEDS)
    roots = sweeps.train(f"{part.letters}-temperature", {name: [setting]}, *tasks, tuning="acc")[name]
    if None in roots:
        raise UserError(f"--settings: the loss of {name} with {setting} on letters is not finite, expected it to be")
    test, kind = utils.load_data(method.tune_data)[1], method.predicts_by
    found = [predict_run(root, kind, {"test": test}, folder / f"letters-{root.name}.npz") for root in roots]
    return best_temperature([own["test"].log_p for own in found], test.labels)


def evaluate(experiment: Experiment, part: Part) -> tuple[dict[str, list[Predicted]], dict[str, "DataSet"], list[Path]]:
    """The predictions by method, whose seed varies fastest and then the split; the images; the run directories."""
    import utils

    out = experiment.kept / "predictions"
    tuned = tuple(dict.fromkeys([*part.methods, *part.ensembles]))
    sweeps, chosen = tune_experiment(experiment, tuned, part.letters, part.tune_splits)
    temperatures = {name: temperature_of(sweeps, name, chosen[name].setting, part, out) for name in part.scaled}
    write_yaml(experiment.out / "temperatures.yaml", temperatures)  # before the first run on MNIST
    settings = {method: [chosen[method].setting] for method in part.methods}
    runs = sweeps.train(str(part.num_examples), settings, part.num_examples, part.splits, part.seeds)
    members = range(part.seeds[0], part.seeds[0] + part.members)
    more = {method: [chosen[method].setting] for method in part.ensembles}
    ensembles = sweeps.train(f"{part.num_examples}-ensembles", more, part.num_examples, part.splits, members)
    roots = list(dict.fromkeys(root for found in (*runs.values(), *ensembles.values()) for root in found))
    params = utils.load_network(roots[0])[1]
    sets = evaluated_sets(utils.check_test_data(params, *utils.load_run_data(params)), part.subset)

    def predict(name: str, roots: Sequence[Path]) -> list[Predicted]:
        kind = sweeps.methods[name].predicts_by
        return [predict_run(root, kind, sets, out / f"{name}-{root.name}.npz") for root in roots]

    found = {method: predict(method, own) for method, own in runs.items()}
    for method, temperature in temperatures.items():
        found[f"{method}, temperature"] = [scaled(own, temperature) for own in found[method]]
    for method, own in ensembles.items():
        each = predict(method, own)
        groups = [each[i : i + part.members] for i in range(0, len(each), part.members)]
        found[f"{part.members} x {method}"] = [ensemble(group) for group in groups]
    return found, sets, roots


def tables_of(numbers: dict[str, list[dict[str, float]]], n: int) -> dict[str, list[list[str]]]:
    """The tables of a training size from the numbers of each method by split: test images, paired differences from the
    first method, and the middle strengths of the shifts."""
    plain = {f"test/{score}": label for score, label in SCORES.items()}
    plain |= {f"auroc/{kind}": label for kind, label in AUROCS.items()} | {"rejected/0.5": "accuracy, half rejected"}
    middle = [f"{shift} {strengths[2]}" for shift, strengths in SHIFTS.items()]
    moved = {f"{name}/{score}": f"{name}: {SCORES[score]}" for name in middle for score in ("acc", "nll", "ece")}

    def rows(columns: dict[str, str], text: Callable[[str, str], str]) -> list[list[str]]:
        return [["method", *columns.values()], *([m, *(text(m, column) for column in columns)] for m in numbers)]

    def values(method: str, column: str) -> list[float]:
        return [split[column] for split in numbers[method]]

    def mean(method: str, column: str) -> str:
        constant = column == "auroc/mutual_information" and not any(values(method, "mutual_information"))
        return "" if constant else mean_text(values(method, column), 3)

    first = next(iter(numbers))
    paired = {column: label for column, label in plain.items() if column != "auroc/mutual_information"}
    differences = rows(paired, lambda m, column: difference_text(values(first, column), values(m, column), 3))
    del differences[1]  # of the first method from itself
    kind = "mean ± standard deviation over splits (n)"
    return {
        f"{n} images, test images, {kind}:": rows(plain, mean),
        f"{n} images, {first} minus the method, paired, mean ± half of the 95% interval:": differences,
        f"{n} images, shifted test images, {kind}:": rows(moved, mean),
    }


def panels_of(
    numbers: dict[str, list[dict[str, float]]], diagrams: dict[str, tuple[list[float], list[float]]], n: int
) -> dict[str, tuple[str, list["Curve"]]]:
    """The panels of a training size, by the label of the y-axis: the label of the x-axis, and the curves."""
    from sweeps.plots import Curve

    def curves(x: Sequence[float], columns: Sequence[str]) -> list[Curve]:
        means = {
            m: [float(np.mean([split[column] for split in own])) for column in columns] for m, own in numbers.items()
        }
        return [Curve(method, x, y) for method, y in means.items()]

    panels = {
        f"{n} images: accuracy": (
            "confidence",
            [*(Curve(method, *diagram) for method, diagram in diagrams.items()), Curve("calibrated", (0, 1), (0, 1))],
        ),
        f"{n} images: accuracy of the rest": (
            "share of the images rejected",
            curves(REJECTED, [f"rejected/{share:g}" for share in REJECTED]),
        ),
    }
    units = {"rotation": "degrees", "blur": "pixels", "noise": "of a range of 1"}
    for shift, strengths in SHIFTS.items():
        columns = ["unchanged/nll", *(f"{shift} {strength}/nll" for strength in strengths)]
        panels[f"{n} images: NLL in nats, {shift}"] = (f"{shift}, {units[shift]}", curves([0, *strengths], columns))
    return panels


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    experiment = parse("uncertainty", __doc__, SCALES, argv, data=("settings",))
    tables: dict[str, list[list[str]]] = {}
    panels: dict[str, tuple[str, list[Any]]] = {}
    roots: list[Path] = []
    rows = []
    for name in experiment.parts:
        part = SCALES[experiment.scale][name]
        predicted, sets, own = evaluate(experiment, part)
        roots += own
        measured = {method: [measure(one, sets) for one in found] for method, found in predicted.items()}
        numbers = {method: by_split(found, len(part.splits)) for method, found in measured.items()}
        for method, splits in numbers.items():
            for split, values in zip(part.splits, splits, strict=True):
                rows.append({"num_examples": part.num_examples, "method": method, "split": split, **values})
        tables |= tables_of(numbers, part.num_examples)
        diagrams = {method: reliability(found, sets["test"].labels) for method, found in predicted.items()}
        panels |= panels_of(numbers, diagrams, part.num_examples)
    write_csv(experiment.out / "uncertainty.csv", rows)
    curves = {ylabel: own for ylabel, (_, own) in panels.items()}
    xlabels = [xlabel for xlabel, _ in panels.values()]
    write_report(experiment, tables, roots, curves, xlabels, rows=len(experiment.parts))


if __name__ == "__main__":
    main()
