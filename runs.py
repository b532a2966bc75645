"""What a command line becomes: checked arguments, a run directory, logs and checkpoints. Does not import torch."""

import argparse
import csv
import datetime
import functools
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

import tabulate
import yaml
from filelock import FileLock

from models.configs import DATA_SETS, INIT_NEEDS, MODELS, PRIOR_NEEDS

ROOT = Path(__file__).resolve().parent
RUN_KEYS = ("root", "time", "id")  # of a run, beside its arguments, in params.yaml
HID_DIM = [32, 64]  # the default
HEADER_EVERY = 40  # rows of the printed table between two headers


def data_root() -> Path:
    """The folder of data sets: $DATA_ROOT, or data/ beside this file."""
    return Path(os.environ.get("DATA_ROOT") or ROOT / "data")


class UserError(Exception):
    """A mistake the user can mend: one line that names the option or file, what was found and what was expected."""


def command(main: Callable) -> Callable:
    """Make a script's `main(argv)` end with exit code 2 and one line on stderr when a `UserError` is raised."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None):
        try:
            return main(argv)
        except UserError as error:
            print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)

    return wrapped


# --- arguments ----------------------------------------------------------------------------------------------------


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults in every line that has one; the description as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str:
        empty = action.default is None or action.default in ("", [])
        return f"{action.help} (default: none)" if empty else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose help states defaults, whose errors are one line, and that reads `--config FILE.yaml`."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False, formatter_class=HelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse_args(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse `argv`; options in the file that `--config` names come first, so the command line overrides them."""
        argv = list(sys.argv[1:] if argv is None else argv)
        if all(action.dest != "config" for action in self._actions):
            return super().parse_args(argv)
        before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        before.error = self.error
        before.add_argument("--config")
        config, argv = before.parse_known_args(argv)
        return super().parse_args(self._config_argv(config.config) + argv if config.config else argv)

    def _config_argv(self, path: str) -> list[str]:
        known = {action.dest: action for action in self._actions if action.dest not in ("help", "config")}
        argv, ignored = [], []
        for key, value in read_yaml(path, f"--config {path}").items():
            if key in RUN_KEYS:
                continue
            if key not in known:
                ignored.append(str(key))
            elif isinstance(known[key], argparse._StoreTrueAction):
                argv += [f"--{key}"] if value else []
            elif isinstance(value, list):
                argv += [f"--{key}", *map(str, value)]
            elif value is not None and value != "":
                argv.append(f"--{key}={value}")
        if ignored:
            print(f"{path}: no such option here, ignored: {', '.join(ignored)}", file=sys.stderr)
        return argv


def number(kind: type, low: float, high: float | None = None, open_low: bool = False) -> Callable[[str], Any]:
    """An argparse type: an int or a finite float in [low, high], or in (low, high] with `open_low`."""
    if high is None:
        high = 2**31 - 1 if kind is int else float("inf")
    bounds = f"{'above' if open_low else 'at least'} {low:g}" + (
        f" and at most {high:g}" if high < float("inf") else ""
    )
    expected = f"expected {'a whole' if kind is int else 'a'} number {bounds}"

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}, {expected}") from None
        # Written so that a NaN fails too.
        if not ((value > low if open_low else value >= low) and value <= high and abs(value) != float("inf")):
            raise argparse.ArgumentTypeError(f"found {text!r}, {expected}")
        return value

    return parse


def variance(text: str) -> float | str:
    """An argparse type: "train" or a positive number."""
    return text if text == "train" else number(float, 0, open_low=True)(text)


def add_run_options(parser: Parser) -> None:
    """Options every script has: where the run goes, its seed and its device."""
    group = parser.add_argument_group("run")
    group.add_argument("--name", default="", help="a note kept in params.yaml")
    group.add_argument("--config", metavar="FILE", help="YAML file of arguments, e.g. a run's params.yaml")
    group.add_argument("--tmp", action="store_true", help="put the run under tmp/ instead of runs/")
    group.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=42, help="seed of every random number")
    group.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where it runs")
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="'bf16': convs and products in bfloat16, parameters and sums in float32; where the device has it",
    )
    group.add_argument(
        "--eval_freq", type=number(int, 1), default=1, help="epochs between evaluations, which also write a checkpoint"
    )


def add_compile_option(group: argparse._ArgumentGroup) -> None:
    """The option of the scripts whose training step torch can compile as a whole."""
    help = "1: torch.compile the training step; where a compiler is there, and slow to start"
    group.add_argument("--compile", type=int, choices=(0, 1), default=0, help=help)


def add_network_options(parser: Parser, net_cfg: str) -> None:
    """Options that the training of a deterministic and of a Bayesian network share."""
    positive, whole = number(float, 0, open_low=True), number(int, 1)
    data = parser.add_argument_group("data")
    data.add_argument("--data", choices=DATA_SETS, default="mnist", help="data set, looked for in $DATA_ROOT")
    data.add_argument("--num_examples", type=whole, help="train on this many images, stratified by class, not all")
    data.add_argument("--data_split_seed", type=number(int, 0, 2**32 - 1), default=42, help="seed of that choice")
    data.add_argument("--bs", type=whole, default=256, help="images per training batch")
    data.add_argument("--test_bs", type=whole, default=500, help="images per test batch")
    data.add_argument(
        "--aug", type=int, choices=(0, 1), default=0, help="1: random crops of the images padded by 4, and flips"
    )

    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=whole, default=100, help="passes over the training images")
    training.add_argument("--lr", type=positive, default=1e-3, help="Adam's initial learning rate")
    training.add_argument(
        "--decrease_from", type=number(int, 0), default=0, help="epoch after which the rate falls linearly to 0"
    )
    training.add_argument(
        "--milestones",
        type=whole,
        nargs="*",
        default=[],
        help="epochs at which the rate is multiplied by gamma instead",
    )
    training.add_argument("--gamma", type=positive, default=0.5, help="that factor")
    training.add_argument("--resume", metavar="RUN_DIR", default="", help="start from a run's model and optimizer")

    model = parser.add_argument_group("network")
    model.add_argument("--model", choices=tuple(MODELS), default="fconv", help="architecture")
    model.add_argument("--net_cfg", default=net_cfg, help="its configuration (models/README.md)")
    model.add_argument("--hid_dim", type=whole, nargs="+", default=HID_DIM, help="channels of each conv of fconv")
    model.add_argument("--model_size", type=positive, default=1.0, help="factor of the channels of the other models")
    model.add_argument("--n_classes", type=number(int, 2), default=10, help="outputs of the classifier")

    init = parser.add_argument_group("initialization, by conv layer in order")
    init.add_argument(
        "--init_list",
        choices=tuple(INIT_NEEDS),
        nargs="*",
        default=[],
        help="how each conv starts; 'pretrained' stands alone",
    )
    for kind, what, metavar in (
        ("vae", "VAE", "DIR"),
        ("flow", "flow", "DIR"),
        ("filters", "npy file of kernels", "NPY"),
    ):
        users = [f"init '{name}'" for name, needs in INIT_NEEDS.items() if f"{kind}_list" in needs]
        users += [f"prior '{name}'" for name, needs in PRIOR_NEEDS.items() if f"{kind}_list" in needs]
        init.add_argument(
            f"--{kind}_list", metavar=metavar, nargs="*", default=[], help=f"{what} of each conv ({', '.join(users)})"
        )
    init.add_argument("--pretrained", metavar="FILE", default="", help="state dict of a network (init 'pretrained')")


def check_net_cfg(args: argparse.Namespace, bayesian: bool) -> None:
    """Check that `net_cfg` is a configuration with, or without, Bayesian convs. Raises UserError."""
    model = MODELS[args.model]
    names = [name for name in model.net_cfgs if any(model.config(name).bayesian) == bayesian]
    if args.net_cfg not in names:
        raise UserError(f"--net_cfg: found {args.net_cfg!r}, expected one of {', '.join(names)} for {args.model}")


def check_network_options(args: argparse.Namespace, priors: Sequence[str] = ()) -> None:
    """Check what one option says about another; `priors` are those of the conv layers. Raises UserError."""
    model = MODELS[args.model]
    sizes = model.kernel_sizes
    if not model.channels and len(args.hid_dim) != len(sizes):
        raise UserError(f"--hid_dim: found {len(args.hid_dim)} numbers, expected {len(sizes)} for {args.model}")
    if model.channels and args.hid_dim != HID_DIM:
        raise UserError(f"--hid_dim: found {args.hid_dim}, expected --model_size for {args.model}")
    if not model.channels and args.model_size != 1:
        raise UserError(f"--model_size: found {args.model_size:g}, expected --hid_dim for {args.model}")
    if model.channels and not min(model.widths(args.model_size)):
        raise UserError(f"--model_size: found {args.model_size:g}, expected enough for a channel in every conv")
    if len(args.init_list) > len(sizes):
        raise UserError(f"--init_list: found {len(args.init_list)} entries, expected at most {len(sizes)} convs")
    if "pretrained" in args.init_list and len(args.init_list) > 1:
        raise UserError(
            f"--init_list: found {' '.join(args.init_list)}, expected 'pretrained' alone: it fills every layer"
        )
    if not args.milestones and args.decrease_from >= args.epochs:
        raise UserError(f"--decrease_from: found {args.decrease_from}, expected less than --epochs {args.epochs}")
    if bool(args.pretrained) != ("pretrained" in args.init_list):
        raise UserError("--pretrained FILE and --init_list pretrained go together: found one without the other")
    for option in ("vae_list", "flow_list", "filters_list"):
        given = getattr(args, option)
        if len(given) > len(sizes):
            raise UserError(f"--{option}: found {len(given)} entries, expected at most {len(sizes)} convs")
        for kinds, table in ((args.init_list, INIT_NEEDS), (priors, PRIOR_NEEDS)):
            for i, kind in enumerate(kinds):
                if option in table[kind] and i >= len(given):
                    raise UserError(f"--{option}: found {len(given)} entries, expected one for conv {i + 1} ({kind!r})")


def learning_rate(args: argparse.Namespace, epoch: int) -> float:
    """Adam's rate in epoch 1..epochs: steps at `milestones` where given, else linear after `decrease_from`."""
    if args.milestones:
        return args.lr * args.gamma ** sum(epoch > milestone for milestone in args.milestones)
    return args.lr * min(1.0, (args.epochs - epoch + 1) / (args.epochs - args.decrease_from))


# --- files --------------------------------------------------------------------------------------------------------


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """A mapping from a YAML file, loaded as data. Raises UserError, which names the file as `what`."""
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{what}: {error.strerror}, expected a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no text, or a date that does not exist
        raise UserError(f"{what}: not a plain YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{what}: found a {type(content).__name__}, expected a mapping of options to values")
    return content


@contextmanager
def write_whole(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a binary file that appears at `path` complete, on success, or not at all.

    Raises UserError where the system refuses: a folder that cannot be written, a full disk.
    """
    path, name = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp's files are the owner's alone
        os.replace(name, path)
    except BaseException as error:
        if name:
            os.unlink(name)
        if isinstance(error, OSError):
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
        raise


class Run:
    """A run directory `$DWP_PATH/exman-<script>/runs/<number>-<time>/` with its arguments, logs and checkpoints.

    Creating one makes the directory, writes `params.yaml` and links it in `index/`. Numbers are taken under a file
    lock, so two launches at the same moment get two.
    """

    def __init__(self, script: str, args: argparse.Namespace):
        base = Path(os.environ.get("DWP_PATH") or ROOT / "logs") / f"exman-{script}"
        self.script = script
        self.rows: list[dict[str, float]] = []
        self.root: Path | None = None
        try:
            for folder in ("runs", "tmp", "index"):
                (base / folder).mkdir(parents=True, exist_ok=True)
            now = datetime.datetime.now()
            with FileLock(base / ".lock"):
                used = [int(p.name[:6]) for d in ("runs", "tmp") for p in (base / d).iterdir() if p.name[:6].isdigit()]
                self.id = max(used, default=0) + 1
                run = f"{self.id:06d}-{now:%Y-%m-%d-%H-%M-%S}"
                root = base / ("tmp" if args.tmp else "runs") / run
                root.mkdir()
                self.root = root
            params = {k: v for k, v in vars(args).items() if k != "config"}
            params |= dict(zip(RUN_KEYS, (str(self.root), now.isoformat(timespec="seconds"), self.id), strict=True))
            with write_whole(self.root / "params.yaml") as file:
                file.write(yaml.safe_dump(params, sort_keys=False).encode())
            link = base / "index" / f"{run}.yaml"
            link.symlink_to(os.path.relpath(self.root / "params.yaml", link.parent))
        except (OSError, UserError) as error:
            if self.root:
                shutil.rmtree(self.root, ignore_errors=True)
            if isinstance(error, UserError):
                raise
            raise UserError(f"DWP_PATH: cannot make a run directory in {base}: {error.strerror}") from None

    def log(self, t: int, **values: float) -> None:
        """Add a row to the table in the CSV file (columns `t` and the values), the text log and the terminal."""
        self.rows.append({"t": t, **values})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with write_whole(self.root / f"{self.script}-logs.csv") as file:
            file.write(text.getvalue().encode())

        head, rule, row = tabulate.tabulate(
            [[v for v in self.rows[-1].values()]], list(self.rows[0]), tablefmt="simple", floatfmt="9.4g"
        ).split("\n")
        lines = [row] if (len(self.rows) - 1) % HEADER_EVERY else [head, rule, row]
        with open(self.root / f"{self.script}-logs.out", "a") as file:
            file.write("\n".join(lines) + "\n")
        from tqdm import tqdm  # prints above a progress bar

        tqdm.write("\n".join(lines), file=sys.stdout)
        sys.stdout.flush()

    def save(self, **states: dict) -> None:
        """Write state dicts, each whole, as `<name>.torch` in the run directory."""
        import torch

        for name, state in states.items():
            with write_whole(self.root / f"{name}.torch") as file:
                torch.save(state, file)


class Stopwatch:
    """Seconds since it was made or last read."""

    def __init__(self):
        self.start = time.perf_counter()

    def lap(self) -> float:
        """The seconds, and a new start."""
        now = time.perf_counter()
        elapsed, self.start = now - self.start, now
        return elapsed
