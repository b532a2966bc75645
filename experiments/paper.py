"""What the experiments of the paper share: their command line, their trials, the published values and the report."""

import csv
import math
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from data.split import train_test
from experiments.methods import CIFARNET
from experiments.subsets import stored_npz
from models.configs import MODELS
from runs.directory import ROOT, dwp_path
from runs.errors import NOT_FINITE, UserError, require_packages, user_error
from runs.files import atomic_write, read_yaml
from runs.log import Row, log_path, read_rows
from runs.options import Parser
from runs.types import data_type, path_type
from sweeps.cluster import Resources, parse_resources, run_lines
from sweeps.grid import split_command
from sweeps.tables import summary

if TYPE_CHECKING:
    from sweeps.plots import Curve
    from utils import DataSet

PUBLISHED = Path(__file__).with_name("published.csv")
FCONV, CIFAR = (ROOT / "data" / name for name in ("fconv", "cifar"))
# The paper's names of initializations, and those of the option init_list.
INITS = {"dwp": "vae", "filters": "filters", "xavier": "xavier"}
RATE = 0.001  # of Adam, where all initializations have the same
RATES = (RATE, 0.003, 0.01, 0.03, 0.1)  # in the parts with a rate for each
HELD_OUT = 1 / 6  # of the training images, on which a rate is chosen
IMAGES = "the name of the data set, or an npz file with MedMNIST's layout"
VAES = "folder with vae7x7 and vae5x5, for published and published-dwp"
SETTINGS = "a settings.yaml of an earlier command: what it has is not chosen again"
# Options that name what some commands read: the type, the metavar, the default, a pattern of the names of the parts
# that read it, and the help.
READ = {
    "cifar10": (data_type, "NAME", "cifar", ".*cifar10.*", f"CIFAR-10: {IMAGES}"),
    "cifar100": (data_type, "NAME", "cifar100", "ours-cifar10", f"CIFAR-100: {IMAGES}"),
    "vaes": (path_type, "DIR", str(FCONV / "scaled"), "published(-dwp)?", VAES),
    "settings": (path_type, "FILE.yaml", "", "(?!published).*", SETTINGS),
}


class Experiment(NamedTuple):
    """A command's name and scale, the parts that it runs, the folder and the report that it writes, and its trials.

    `data` has the values of the command's options in READ, "cifar10" and so on.
    """

    name: str
    scale: str
    parts: Sequence[str]
    out: Path
    report: str
    resources: Resources
    command: str
    data: Mapping[str, str]

    @property
    def kept(self) -> Path:
        """The folder of what a continued experiment reads again, for any folder of results."""
        return dwp_path() / f"{self.name}-{self.scale}"

    def run(self, part: str, script: str, lines: Sequence[str], accepted: str = "") -> list[Path | None]:
        """The run directories of trials of a script, given by their arguments, as the sweep `<name>-<scale>-<part>`.

        `{cifar10}` and so on in the arguments stand for the options' values. `accepted` is as in `run_sweep`.
        """
        for option, value in self.data.items():
            lines = [line.replace(f"{{{option}}}", shlex.quote(value)) for line in lines]
        return run_lines(f"{self.name}-{self.scale}-{part}", script, lines, self.resources, self.command, accepted)


def parse(
    name: str,
    description: str,
    scales: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None,
    data: Sequence[str] = (),
) -> Experiment:
    """The experiment that a command line asks for. After `--` come the options of sweeps. Raises UserError.

    `scales` has the parts of each scale by name, `data` the command's options in READ.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    own, sweep_words = split_command(argv)
    parser = Parser(description)
    parser.add_argument("--scale", choices=tuple(scales), required=True, help="how many and how large the runs are")
    parts = list(dict.fromkeys(part for scale in scales.values() for part in scale))
    grey = [part for part in parts if "cifar10" not in part]
    help = "what to run of the scale, by default all of it but CIFAR-10"
    parser.add_argument("--parts", choices=parts, nargs="+", help=help)
    parser.add_argument("--out", type=Path, help=f"folder of the results, by default $DWP_PATH/{name}-<scale>")
    help = "file whose lines between <!-- NAME --> and <!-- end of NAME --> are replaced by the tables of these parts"
    parser.add_argument("--report", type=path_type, metavar="FILE.md", default="", help=help.replace("NAME", name))
    for option in data:
        kind, metavar, default, _, help = READ[option]
        parser.add_argument(f"--{option}", type=kind, metavar=metavar, default=default, help=help)
    args = parser.parse_args(own)
    out, resources = (args.out or dwp_path() / f"{name}-{args.scale}").absolute(), parse_resources(sweep_words)
    named = {option: getattr(args, option) for option in data}
    require_packages(name, "ray")
    for part in args.parts or ():
        if part not in scales[args.scale]:
            raise UserError(f"--parts: found {part}, expected of {', '.join(scales[args.scale])} at this scale")
    chosen = [part for part in scales[args.scale] if part in (args.parts or grey)]
    for option, value in named.items():
        _, _, default, readers, _ = READ[option]
        if value != default and not any(re.fullmatch(readers, part) for part in chosen):
            raise UserError(f"--{option}: none of the parts {', '.join(chosen)} reads it, expected one that does")
    if args.report:  # mistakes are answered at once
        replaced(args.report, name, "")
        if not out.is_relative_to(Path(args.report).parent):
            raise UserError(f"--out {out}: expected a folder below that of {args.report}, which shows the figure")
    make_folder(out, named.get("settings", ""))
    command = f"python -m experiments.{name} {shlex.join(argv)}"
    return Experiment(name, args.scale, chosen, out, args.report, resources, command, named)


def make_folder(out: Path, settings: str = "") -> None:
    """Make the folder of a command's results, before its first run. Raises UserError.

    Refuses a file `settings` in that folder: the command would write its own over it, which may have fewer methods.
    """
    if settings and Path(settings).resolve().parent == out.resolve():
        raise UserError(f"--settings {settings}: found it in --out, where settings are written; expected another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}, expected a folder to write to") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: Permission denied, expected a folder to write to")


def load_images(experiment: Experiment, option: str, n_classes: int) -> tuple["DataSet", "DataSet"]:
    """Both parts of the data set of an option, of colour images, with all classes. Raises UserError."""
    import utils

    name, shape = experiment.data[option], MODELS["cifarnet"].image_shape
    try:
        parts = utils.load_data(name, shape)
    except UserError as error:
        raise UserError(str(error).replace("--data", f"--{option}", 1)) from None
    for part, data in zip(("training", "test"), parts, strict=True):
        label = f"--{option} {name}: found"
        if data.images.shape[1:] != shape:
            raise UserError(f"{label} images of shape {tuple(data.images.shape[1:])}, expected {shape}")
        found = len(set(data.labels.tolist()))
        if found != n_classes:
            raise UserError(f"{label} {found} classes of {part} images, expected {n_classes}")
    return parts


def require_files(files: Sequence[Path]) -> None:
    """Raises UserError where a file that a part needs does not exist."""
    if missing := [file for file in files if not file.exists()]:
        raise UserError(f"--parts: found no {missing[0]}, which a part needs; expected it, or the other --parts alone")


def init_options(init: str, convs: Sequence[str]) -> str:
    """The options that initialize convs, given by the names of their kernels ("7x7"), in the paper's way `init`.

    Raises UserError where a VAE or kernels are missing.
    """
    name, folder = INITS[init], CIFAR if convs == CIFARNET else FCONV
    form = {"vae": "vae{}", "filters": "conv{}/train.npy", "xavier": ""}[name]
    files = [folder / form.format(conv) for conv in convs] if form else []
    require_files(files)
    listed = f" --{name}_list {shlex.join(map(str, files))}" if files else ""
    return f"--init_list {' '.join([name] * len(convs))}{listed}"


class Part(Protocol):
    """What the trainings of a part of an experiment have in common.

    script : their script.
    images : the option `--data`, where `{cifar10}` stands for the option's value.
    convs : the names of the kernels of their convs.
    column : of the log, larger is better.
    seeds : of each training.
    rates : of which each training has the best; without, all have RATE.
    """

    script: str
    images: str
    convs: Sequence[str]
    column: str
    seeds: Sequence[int]
    rates: Sequence[float]


def with_rates(parts: Sequence[Any], rates: Sequence[float] = RATES, seeds: int | None = None) -> dict[str, Any]:
    """Parts by the name of their data: with one rate for all trainings, and then, as `<name>-rates`, with a rate for
    each and the first `seeds`, by default all."""
    tuned = {f"{part.data}-rates": part._replace(rates=rates, seeds=part.seeds[:seeds]) for part in parts}
    return {part.data: part for part in parts} | tuned


def part_title(label: str, part: Part) -> str:
    """The label of a panel and a table, which tells whether the rates of a part are chosen."""
    return f"{label}, tuned rates" if part.rates else label


def held_out(experiment: Experiment, part: Part) -> str:
    """The path of an npz file of the training images of a part, some of them held out, as the images of its test."""
    import utils

    shape = MODELS["cifarnet" if part.convs == CIFARNET else "fconv"].image_shape
    train, _ = utils.load_data(part.images.format(**experiment.data), shape)
    with user_error(f"--cifar10 {experiment.data['cifar10']}:"):  # MNIST has enough images of each class
        learnt, others = train_test(train.labels.numpy(), HELD_OUT, 0)
    return str(stored_npz(dwp_path() / "held-out", train[learnt], train[others]))


def choose_rates(experiment: Experiment, name: str, part: Part, runs: Sequence[str]) -> tuple[list[float], list[Path]]:
    """The rate of each training, and the run directories of those that chose it. As `train_all`.

    It is the one with the largest mean of the column over the evaluations on images that are held out, with the seed 0,
    which no reported run has; of equal means the largest rate. A rate whose loss became infinite or NaN is not chosen.
    Raises UserError where none is left.
    """
    data, rates = shlex.quote(held_out(experiment, part)), part.rates
    lines = [f"{run} --data {data} --lr {rate:g} --seed 0" for run in runs for rate in rates]
    roots = experiment.run(f"{name}-choice", part.script, lines, accepted=NOT_FINITE)
    logs = [root and read_rows(log_path(root, part.script)) for root in roots]
    means = [sum(row[part.column] for row in rows) / len(rows) if rows else -math.inf for rows in logs]
    best = []
    for i, run in enumerate(runs):
        mean, rate = max(zip(means[i * len(rates) : (i + 1) * len(rates)], rates, strict=True))
        if mean == -math.inf:
            raise UserError(f"--parts {name}: the loss became infinite or NaN at each of the rates {rates} of: {run}")
        best.append(rate)
    return best, [root for root in roots if root]


def train_all(
    experiment: Experiment, name: str, part: Part, runs: Sequence[str]
) -> tuple[list[float], list[list[list[Row]]], list[Path]]:
    """The rate of each training, the rows of the logs of its seeds, and the run directories of all.

    `name` is that of the part; `runs` are arguments of its script, without images, rate and seed.
    """
    rates, tried = choose_rates(experiment, name, part, runs) if part.rates else ([RATE] * len(runs), [])
    shared = [f"{run} --data {part.images} --lr {rate:g}" for run, rate in zip(runs, rates, strict=True)]
    roots = experiment.run(name, part.script, [f"{own} --seed {seed}" for own in shared for seed in part.seeds])
    logs, n = [read_rows(log_path(root, part.script)) for root in roots], len(part.seeds)
    return rates, [logs[i : i + n] for i in range(0, len(logs), n)], tried + roots


def prepared(experiment: Experiment, parts: Mapping[str, Part]) -> dict[str, list[str]]:
    """The options of each initialization that the networks of each part have, by the part's name.

    Checks kernels, VAEs and images before the first run. Raises UserError.
    """
    inits = {name: [init_options(init, part.convs) for init in INITS] for name, part in parts.items()}
    if any(part.convs == CIFARNET for part in parts.values()):
        load_images(experiment, "cifar10", 10)
    return inits


def published(figure: str, data: str, method: str) -> dict[str, float]:
    """The published values of a method by setting."""
    with open(PUBLISHED, newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if (row["figure"], row["data"], row["method"]) == (figure, data, method)
        ]
    return {row["setting"]: float(row["value"]) for row in rows}


def mean_curve(
    label: str,
    x: Sequence[float | str],
    values: Sequence[Sequence[float]],
    published: Sequence[tuple[float | str, float]] = (),
) -> "Curve":
    """The curve of means and standard deviations of the values at each x, with published points."""
    from sweeps.plots import Curve

    found = [summary(list(own)) for own in values]
    return Curve(label, x, [point["mean"] for point in found], [point["std"] for point in found], published)


def mean_text(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation (n - 1) of values, and their number, as text."""
    found = summary(list(values))
    return f"{found['mean']:.{digits}f} ± {found['std']:.{digits}f} ({found['n']})"


def difference_text(first: Sequence[float], own: Sequence[float], digits: int) -> str:
    """Mean of the paired differences of values, the first minus the own, and half of its 95% interval, as text."""
    found = summary([a - b for a, b in zip(first, own, strict=True)])
    return f"{found['mean']:+.{digits}f} ± {found['high'] - found['mean']:.{digits}f}"


def environment_text(roots: Sequence[Path]) -> str:
    """When and on what the runs were made, from their params.yaml."""
    roots = dict.fromkeys(roots)  # parts can share runs
    params = [read_yaml(root / "params.yaml") for root in roots]
    found = [{"processor": "an unknown processor", "commit": None} | p["environment"] for p in params]
    machines = sorted({f"{own['processor']} with torch {own['torch']}" for own in found})
    commits = sorted({own["commit"][:8] + own["commit"][40:] for own in found if own["commit"]})
    code = f", code of {', '.join(commits)}" if commits else ""
    code += " (-dirty: with changes that were not committed)" if "-dirty" in code else ""
    days = sorted(str(p["time"])[:10] for p in params)
    span = " to ".join(dict.fromkeys((days[0], days[-1])))
    return f"{len(roots)} runs, {span}, on {'; '.join(machines)}{code}."


def replaced(path: str | Path, name: str, text: str) -> str:
    """The file's text with the part between the marks of an experiment replaced. Raises UserError without the marks."""
    try:
        content = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--report {path}: {error}, expected a text file") from None
    marks = [f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"]
    if any(content.count(mark) != 1 for mark in marks) or content.index(marks[0]) > content.index(marks[1]):
        raise UserError(f"--report {path}: expected one line {marks[0].strip()} and after it one {marks[1].strip()}")
    pattern = "(?<={}).*(?={})".format(*map(re.escape, marks))
    return re.sub(pattern, lambda _: text, content, flags=re.DOTALL)


def write_report(
    experiment: Experiment,
    tables: Mapping[str, list[list[str]]],
    roots: Sequence[Path],
    panels: dict[str, list["Curve"]],
    xlabel: str | Sequence[str],
    caption: str = "",
    **layout: Any,
) -> None:
    """Write the figure, and tables by title, whose first row has the headers, with the command and the machine: to the
    folder, and to the report's part where one is given.

    `caption` says what the figure's bars and bands are. `panels`, `xlabel` and `layout` are arguments of `plot_panels`.
    """
    import tabulate

    from sweeps.plots import plot_panels, save

    lines = []
    for title, (headers, *rows) in tables.items():
        lines += [f"{title}\n", tabulate.tabulate(rows, headers, tablefmt="github", disable_numparse=True), ""]
    figure = experiment.out / f"{experiment.name}.png"
    save(plot_panels(panels, xlabel, **layout), figure, vector=True)

    def text(shown: str | Path) -> str:
        """The report with the path of the figure as it is shown."""
        start = [f"```\n{experiment.command}\n```\n", environment_text(roots), f"\n![{experiment.name}]({shown})\n"]
        return "\n".join([*start, *([f"{caption}\n"] if caption else []), *lines])

    outputs = {experiment.out / f"{experiment.name}.md": text(figure.name)}
    if experiment.report:
        shown = text(figure.relative_to(Path(experiment.report).parent))
        outputs[Path(experiment.report)] = replaced(experiment.report, experiment.name, shown)
    for path, content in outputs.items():
        with atomic_write(path) as file:
            file.write(content.encode())
    print(text(figure))
