"""Predict images with the network of a run, or of several: classes, probabilities, and how uncertain they are.

    python -m experiments.predict RUN_DIR [RUN_DIR ...] DATA [--out predictions.csv] [--export model.pt2]

The probabilities of several networks are averaged. DATA is a folder of images, or the name of a data set or an npz
file, whose test images are predicted. If a folder has a folder test/, only the images in it are predicted. If DATA is
the folder that the runs were trained on, or a copy of the same images, only their test images are; a folder in it of
images that were learnt, as its train/, is refused. An image in a folder that is named like a class has that label; the
others are unlabelled.

A Bayesian network averages `--samples` draws of its weights. Dropout is off, also of a network that was trained with
it. The table has a row per image: its label, the predicted class, the entropy of the prediction in nats, its two parts,
and the probability of each class. "aleatoric" is the mean entropy of the single draws, for several networks the mean
over these, which comes from ambiguous images; "mutual_information" is the rest, the disagreement of draws and networks,
which more labels reduce. The unlabelled images with the most of it are named: label those next. A single network
without draws has none of it: there the images with the largest entropy are named. The picture has the table's name with
.png: the surest images, the least sure ones, and the wrong ones where labels are known. Accuracy, NLL, ECE (expected
calibration error) and Brier score of each network and of their ensemble are printed. Files that exist are replaced.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.configs import DATA_SETS, MODELS
from runs.errors import UserError, one_line_errors, user_error
from runs.log import write_csv
from runs.options import Parser
from runs.types import SEED, WHOLE, number_type, path_type

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 10  # images in a row of the picture, and that are named


def is_copy(params: dict[str, Any], files: Sequence[Path], images: "Tensor", labels: "Tensor") -> bool:
    """Whether the images of a folder are those of FOLDER/<class>/ that a run, given by its params, has loaded."""
    import utils
    from data.split import train_test
    from runs.checkpoint import stored_inputs

    index = [i for i, file in enumerate(files) if len(file.parts) == 2 and labels[i] >= 0]
    data = utils.DataSet(images[index], labels[index])
    try:
        parts = [data[part] for part in train_test(data.labels.numpy(), *utils.folder_split(params))]
        utils.check_test_data(params, *parts)
    except ValueError:  # other images, or too few to split
        return False
    return "data" in stored_inputs(params)


def read_inputs(data: str, runs: Sequence[dict[str, Any]]) -> tuple[list[str], "Tensor", "Tensor"]:
    """Names, images (n, c, h, w) in uint8, and labels (n,), -1 where unknown; none that one of the runs, given by their
    params, learnt from. Raises UserError."""
    import torch

    import utils
    from data.images import read_any, read_folder

    params = runs[0]
    shape, classes = MODELS[params["model"]].image_shape, params["classes"]
    paths = data, params["data"]
    of_run = paths[0] == paths[1] or (all(map(os.path.exists, paths)) and os.path.samefile(*paths))
    if data in DATA_SETS or data.endswith(".npz"):
        train, test = utils.load_data(data, shape)
        if not len(test.labels) or tuple(test.images.shape[1:]) != shape or test.labels.max() >= len(classes):
            found = f"{tuple(test.images.shape)} and labels up to {max([-1, *test.labels.tolist()])}"
            raise UserError(f"DATA {data}: found test images {found}, expected (n, *{shape}) of {len(classes)} classes")
        for own in runs if of_run else ():
            utils.check_test_data(own, train, test)
        return [str(i) for i in range(len(test.labels))], *test
    folder = Path(data, "test") if Path(data, "test").is_dir() else Path(data)
    with user_error(f"DATA {folder}:"):
        if not of_run:
            learnt = [Path(own["data"]) for own in runs if own["data"] not in DATA_SETS]
            learnt = [Path(part, "train") if Path(part, "train").is_dir() else part for part in learnt]
            if any(part.is_dir() and folder.resolve().is_relative_to(part.resolve()) for part in learnt):
                raise ValueError("found images that the run learnt from, expected others")
            files, images = read_any(folder, shape)
            numbers = {name: i for i, name in enumerate(classes)}
            labels = torch.tensor([numbers.get(path.parts[0], -1) if len(path.parts) > 1 else -1 for path in files])
            if folder != Path(data) or not any(is_copy(own, files, images, labels) for own in runs):
                return [str(path) for path in files], images, labels
        # Of the folder that the run learnt from, only what it did not learn from.
        splits = {utils.folder_split(own) for own in runs}
        # Without train/ a test image of one run may be one that another learnt.
        if len(splits) > 1 and not Path(data, "train").is_dir():
            found = ", ".join(f"{fraction:g} by seed {seed}" for fraction, seed in sorted(splits))
            raise UserError(f"RUN_DIR: found runs with the test images {found} of {data}, expected one split")
        parts = read_folder(Path(data), shape, *utils.folder_split(params))
        sets = [utils.DataSet(torch.from_numpy(part.images), torch.from_numpy(part.labels)) for part in parts]
        for own in runs:
            utils.check_test_data(own | {"data": data}, *sets)
        return [os.path.relpath(file, data) for file in parts[1].files], *sets[1]


def check_runs(names: Sequence[str], runs: Sequence[dict[str, Any]]) -> None:
    """Check that networks can predict together: the same data, classes and size of the images. Raises UserError."""

    def task(params: dict[str, Any]) -> dict[str, Any]:
        shape = MODELS[params["model"]].image_shape
        return {"data": params["data"], "classes": params["classes"], "images of": shape}

    first = task(runs[0])
    for name, params in zip(names, runs, strict=True):
        for key, value in task(params).items():
            if value != first[key]:
                raise UserError(f"RUN_DIR {name}: found {key} {value}, expected {first[key]} as of {names[0]}")


def export(net: Any, shape: Sequence[int], path: Path) -> None:
    """Write the mean network, from images (n, *shape) in [0, 1] to logits, by `torch.export`. Raises UserError."""
    import torch

    from models.bayes import set_mode
    from runs.files import atomic_write

    set_mode(net, "det")
    x = torch.rand(2, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own formats and about tensors that are not on a CPU
        program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
        with atomic_write(path) as file:
            torch.export.save(program, file)
        found, expected = torch.export.load(path).module()(x), net(x)
    if not torch.allclose(found, expected, atol=1e-5):
        raise UserError(
            f"--export {path}: its logits differ by {(found - expected).abs().max():g}, expected the network's"
        )


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    help = "run directories of train-net.py and train-bnn.py, in any mix, with one data set"
    add("runs", type=path_type, nargs="+", metavar="RUN_DIR", help=help)
    add("data", metavar="DATA", help=f"folder of images, npz file, or one of {', '.join(DATA_SETS)}")
    add("--out", type=Path, default=Path("predictions.csv"), help="the table; the picture has its name and .png")
    add("--samples", type=number_type(int, 0), default=30, help="draws of the weights; 0: the mean network")
    add("--seed", type=SEED, default=0, help="seed of the first network's draws; those of the others count up")
    add("--test_bs", type=WHOLE, default=500, help="images per batch; at most 100 on a CPU")
    add("--export", type=Path, metavar="PT2", help="also write the mean network by torch.export")
    args = parser.parse_args(argv)
    if args.out.suffix == ".png":
        raise UserError(f"--out: found {args.out}, expected a name without .png, which is the picture's")
    if args.export and len(args.runs) > 1:
        raise UserError(f"--export: found {len(args.runs)} runs, expected one")
    # After the arguments, so that a mistake in them is answered at once.
    import tabulate

    import utils
    from experiments.predictions import combined, predict_networks
    from models.metrics import scores
    from runs.device import choose_device

    device = choose_device("auto")
    nets, runs = zip(*(utils.load_network(run, device) for run in args.runs), strict=True)
    check_runs(args.runs, runs)
    params = runs[0]
    classes = params["classes"]
    names, images, labels = read_inputs(args.data, runs)
    data = utils.DataSet(images.to(device), labels.to(device))
    members = predict_networks(nets, data, args.samples, args.test_bs, args.seed)
    together = combined(members)
    mean, parts = together.log_p, together.uncertainty()
    predicted = mean.argmax(1)
    rows = []
    for i, name in enumerate(names):
        label = {"label": classes[labels[i]] if labels[i] >= 0 else ""}
        probabilities = {f"p_{c}": p for c, p in zip(classes, mean[i].exp().tolist(), strict=True)}
        own = {part: values[i].item() for part, values in parts.items()}
        rows.append({"image": name, **label, "class": classes[predicted[i]], **own, **probabilities})
    write_csv(args.out, rows)

    order = parts["entropy"].argsort(stable=True)
    most = min(SHOWN, max(1, len(names) // 2))  # so that no image is shown both as sure and as unsure
    shown = {"surest": order[:most], "least sure": order.flip(0)[:most]}
    known = labels >= 0
    wrong = [i for i in order.tolist() if known[i] and predicted[i] != labels[i]]
    if wrong:
        shown["wrong, surest first"] = order.new_tensor(wrong[:SHOWN])
    from sweeps.plots import plot_images, save

    captions = [
        f"{row['class']} {mean[i].max().exp():.2f}\n{row['label'] and 'is '}{row['label']}"
        for i, row in enumerate(rows)
    ]
    pictures = {title: (images[index], [captions[i] for i in index]) for title, index in shown.items()}
    save(plot_images(pictures), args.out.with_suffix(".png"), tight=True)
    print(f"{len(names)} images: {args.out}, {args.out.with_suffix('.png')}")
    if known.any():
        printed = list(zip(args.runs, members, strict=True))
        printed += [(f"ensemble of {len(members)}", together)] if len(members) > 1 else []
        found = [[name, *scores(own.log_p[known], labels[known]).values()] for name, own in printed]
        print(tabulate.tabulate(found, ["run", "accuracy", "NLL (nats)", "ECE", "Brier"], floatfmt=".4f"))
    # The mutual information is exactly 0 without a second draw or network.
    measure = "mutual_information" if parts["mutual_information"].any() else "entropy"
    ask = [i for i in parts[measure].argsort(descending=True, stable=True).tolist() if not known[i]]
    if ask:
        print(f"largest {measure.replace('_', ' ')}, to label next: {', '.join(names[i] for i in ask[:SHOWN])}")
    if args.export:
        export(nets[0].cpu(), MODELS[params["model"]].image_shape, args.export)
        print(f"mean network: {args.export}")


if __name__ == "__main__":
    main()
