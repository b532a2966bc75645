"""What a command line becomes: checked arguments, a run directory, logs and checkpoints. Does not import torch."""

import argparse
import csv
import datetime
import functools
import importlib.util
import io
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import tabulate
import yaml
from filelock import FileLock, Timeout

from models.configs import DATA_SETS, INIT_NEEDS, MODELS, PRIOR_NEEDS

if TYPE_CHECKING:
    import torch
    from torch.utils.tensorboard import SummaryWriter

ROOT = Path(__file__).resolve().parent
RUN_KEYS = ("root", "time", "id", "environment")  # of a run, beside its arguments, in params.yaml
HID_DIM = [32, 64]  # the default
HEADER_EVERY = 40  # rows of the printed table between two headers
CHECK_EVERY = 100  # steps between two looks at whether the loss is finite, each of which waits for the device
CHECKPOINTS = ("checkpoint.torch", "checkpoint-before.torch")  # the last, and the one before it
STATE_EVERY = 1.0  # seconds
MAX_YAML = 1_000_000  # bytes


def data_root() -> Path:
    """The folder of data sets: $DATA_ROOT, or data/ beside this file."""
    return Path(os.environ.get("DATA_ROOT") or ROOT / "data")


class UserError(Exception):
    """A mistake the user can mend: one line that names the option or file, what was found and what was expected."""


class Stopped(Exception):
    """A run that a signal stopped, after a checkpoint."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


def require_packages(what: str, *names: str) -> None:
    """Check that packages of requirements-sweep.txt are there for `what`. Raises UserError."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{what}: found no package {name}, expected it: pip install -r requirements-sweep.txt")


def command(main: Callable) -> Callable:
    """Make a script's `main(argv)` end with one line on stderr, not a traceback, in the cases that are foreseen.

    The exit code is 2 for a `UserError`, and 128 + the signal's number where a signal stopped it: 130, 143.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None):
        try:
            return main(argv)
        except UserError as error:
            code, line = 2, f"error: {error}"
        except Stopped as stopped:
            code, line = 128 + stopped.number, str(stopped)
        except KeyboardInterrupt:
            code, line = 128 + signal.SIGINT, "interrupted"
        print(f"{Path(sys.argv[0]).name}: {' '.join(line.split())}", file=sys.stderr)
        sys.exit(code)

    return wrapped


# --- arguments ----------------------------------------------------------------------------------------------------


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults in every line that has one; the description as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str:
        empty = action.default is None or action.default in ("", [])
        return f"{action.help} (default: none)" if empty else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose help states defaults and whose errors are one line.

    Of a script with run directories, whose name is `script`, it also reads `--config FILE.yaml` and `--continue DIR`.
    """

    def __init__(self, description: str, script: str = ""):
        super().__init__(description=description, allow_abbrev=False, formatter_class=HelpFormatter)
        self.script = script

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse_args(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse `argv`; options in the file that `--config` names come first, so the command line overrides them.

        With `--continue` all options are the run's own; an option that says something else is refused.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        if not self.script:
            return super().parse_args(argv)
        before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        before.error = self.error
        before.add_argument("--config")
        before.add_argument("--continue", dest="continue_run")
        given, argv = before.parse_known_args(argv)
        if given.continue_run is None:
            return super().parse_args(self._config_argv(given.config) + argv if given.config else argv)

        what = f"--continue {given.continue_run}"
        if given.config:
            self.error(f"{what}: found --config too, expected the run's own arguments")
        params = read_yaml(Path(given.continue_run) / "params.yaml", f"{what}/params.yaml")
        script = (params.get("environment") or {}).get("script")
        if script != self.script:
            self.error(f"{what}: found a run of {script or 'an unknown script'}, expected one of {self.script}")
        own = self._config_argv(Path(given.continue_run) / "params.yaml")
        args = super().parse_args(own)
        for key, value in vars(super().parse_args(own + argv)).items():
            if value != getattr(args, key):
                self.error(f"--{key}: found {value}, expected the run's own {getattr(args, key)} with {what}")
        args.continue_run = given.continue_run
        return args

    def _config_argv(self, path: str) -> list[str]:
        known = {
            action.dest: action for action in self._actions if action.dest not in ("help", "config", "continue_run")
        }
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


def tensorboard_switch(text: str) -> int:
    """An argparse type: 0, or 1 where the package is there."""
    if int(text):
        require_packages("--tensorboard", "tensorboard")
    return int(text)


def add_run_options(parser: Parser) -> None:
    """Options every script has: where the run goes, its seed and its device."""
    group = parser.add_argument_group("run")
    group.add_argument("--name", default="", help="a note kept in params.yaml")
    group.add_argument("--config", metavar="FILE", help="YAML file of arguments, e.g. a run's params.yaml")
    group.add_argument(
        "--continue",
        dest="continue_run",
        metavar="RUN_DIR",
        help="go on with a run that was stopped, from its checkpoint, in its directory and with its arguments",
    )
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
        "--eval_freq", type=number(int, 1), default=1, help="epochs between evaluations, which also write the model"
    )
    group.add_argument(
        "--checkpoint_freq",
        type=number(int, 0),
        default=0,
        help="epochs between checkpoints, from which --continue goes on; 0: after those with an evaluation",
    )
    group.add_argument(
        "--tensorboard",
        type=tensorboard_switch,
        choices=(0, 1),
        default=0,
        help="1: learning curves for TensorBoard too, in the run directory",
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
    data.add_argument("--test_bs", type=whole, default=500, help="images per test batch; a CPU takes at most 100")
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
    model.add_argument(
        "--hid_dim", type=whole, nargs="+", default=HID_DIM, help="channels of each conv of fconv and fconv3x3"
    )
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
    """A mapping from a YAML file, loaded as data: its values are scalars, lists of these, or mappings to these.

    Raises UserError, which names the file as `what`.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_YAML + 1)
        if len(text) > MAX_YAML:
            raise ValueError(f"more than {MAX_YAML} bytes")
        content = yaml.safe_load(text.decode())
    except OSError as error:
        raise UserError(f"{what}: {error.strerror}, expected a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no text, or a date that does not exist
        raise UserError(f"{what}: not a plain YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{what}: found a {type(content).__name__}, expected a mapping of options to values")
    for key, value in content.items():
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        # Aliases make a small file into a huge tree, which must not be printed or parsed.
        if any(isinstance(item, dict | list | tuple | set) for item in (key, *inner)):
            raise UserError(f"{what}: found nested values, expected a number, a text or a list of these for each name")
    return content


@contextmanager
def write_whole(path: str | Path, keep: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a binary file that appears at `path` complete, on success, or not at all.

    What was there is kept as `keep`, where that is given; for a moment it is there alone. Raises UserError where the
    system refuses: a folder that cannot be written, a full disk.
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
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(name, path)
    except BaseException as error:
        if name:
            os.unlink(name)
        if isinstance(error, OSError):
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
        raise


def environment(script: str, device: "torch.device") -> dict[str, Any]:
    """What a run's numbers depend on beside its arguments: the code, torch, threads and device."""
    import torch

    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    threads = torch.get_num_threads()
    return {
        "script": script,
        "commit": commit,
        "torch": str(torch.__version__),
        "threads": threads,
        "device": str(device),
    }


class Run:
    """A run directory `$DWP_PATH/exman-<script>/runs/<number>-<time>/` with its arguments, logs and checkpoints.

    A new one makes the directory, writes `params.yaml` and links it in `index/`; with `args.continue_run` it is that
    run's. Numbers are taken under a file lock, so that launches at the same moment get different ones, and a lock on
    the directory keeps a second process out of a run; both end with the process that holds them.

    A script names what its training changes with `track`, and loops over `epochs` and `batches`, which write the
    checkpoints, stop at a signal, and start where the checkpoint of a continued run stopped.
    """

    def __init__(self, script: str, args: argparse.Namespace, device: "torch.device"):
        self.script = script
        self.args = args
        self.device = device
        self.rows: list[dict[str, float]] = []
        self.epoch = 0  # epochs done
        self.step = 0  # steps done, the one at hand included
        self.order: torch.Tensor | None = None  # of the training set in this epoch, from the next batch on
        self.tracked: dict[str, Any] = {}
        self.stopped_by: int | None = None
        self._first_bad: torch.Tensor | None = None
        self._logged = False
        self._events: SummaryWriter | None = None
        if args.continue_run:
            self.root = Path(args.continue_run)
        else:
            self._create()
        self._lock = FileLock(self.root / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(f"--continue {self.root}: found a process that runs it, expected none") from None
        except OSError as error:
            raise UserError(f"--continue {self.root}: cannot be written: {error.strerror}") from None

    def _create(self) -> None:
        base = Path(os.environ.get("DWP_PATH") or ROOT / "logs") / f"exman-{self.script}"
        root: Path | None = None
        try:
            for folder in ("runs", "tmp", "index"):
                (base / folder).mkdir(parents=True, exist_ok=True)
            now = datetime.datetime.now()
            with FileLock(base / ".lock"):
                used = [int(p.name[:6]) for d in ("runs", "tmp") for p in (base / d).iterdir() if p.name[:6].isdigit()]
                number_ = max(used, default=0) + 1
                run = f"{number_:06d}-{now:%Y-%m-%d-%H-%M-%S}"
                root = base / ("tmp" if self.args.tmp else "runs") / run
                root.mkdir()
            params = {k: v for k, v in vars(self.args).items() if k not in ("config", "continue_run")}
            own = (str(root), now.isoformat(timespec="seconds"), number_, environment(self.script, self.device))
            with write_whole(root / "params.yaml") as file:
                file.write(yaml.safe_dump(params | dict(zip(RUN_KEYS, own, strict=True)), sort_keys=False).encode())
            link = base / "index" / f"{run}.yaml"
            link.symlink_to(os.path.relpath(root / "params.yaml", link.parent))
        except (OSError, UserError) as error:
            if root:
                shutil.rmtree(root, ignore_errors=True)
            if isinstance(error, UserError):
                raise
            raise UserError(f"DWP_PATH: cannot make a run directory in {base}: {error.strerror}") from None
        self.root = root

    # --- the loop ---

    def track(self, **tracked: Any) -> None:
        """Name the modules, optimizers and tensors that a checkpoint holds; of a continued run, fill them from it.

        Raises UserError where neither the last checkpoint nor the one before it is one of this run.
        """
        self.tracked = tracked
        if not self.args.continue_run:
            return
        import utils

        what = f"--continue {self.root}"
        files = [file for name in CHECKPOINTS if (file := self.root / name).exists()]
        for file in files:
            try:
                state = utils.load_file(file, what)
                break
            except UserError as error:
                if file == files[-1]:
                    raise
                print(f"{error}; going on from the one before", file=sys.stderr)
        else:
            return  # stopped before its first checkpoint: it starts again
        self.epoch, self.step, rows, self.order = utils.restore(state, tracked, self.device, f"{what}: {file.name}")
        log = self.root / f"{self.script}-logs.csv"
        self.rows = read_rows(log, what)[:rows] if rows else []
        if len(self.rows) < rows:
            raise UserError(f"{what}: found {len(self.rows)} rows in the log, expected {rows}")
        self._write_logs()

    def epochs(self, total: int) -> Iterator[int]:
        """The epochs 1..total that are not done. After an epoch comes its checkpoint, where one is due."""
        from tqdm import tqdm

        tqdm.write(f"run directory: {self.root}", file=sys.stdout)
        sys.stdout.flush()
        self._write_state("running", total)
        if self.args.tensorboard:
            self._start_events()
        written = time.monotonic()
        with self._signals(), tqdm(total=total, initial=self.epoch, desc="epochs", disable=None) as bar:
            while self.epoch < total:
                yield self.epoch + 1
                self.epoch += 1
                self.order = None
                bar.update()
                freq = self.args.checkpoint_freq
                if self.epoch == total or (self.epoch % freq == 0 if freq else self._logged):
                    self.checkpoint()
                    self._logged = False
                if self.epoch < total:
                    self._stop_if_asked()
                if time.monotonic() > written + STATE_EVERY:
                    self._write_state("running", total)
                    written = time.monotonic()
        if self._events:
            self._events.close()
        self._write_state("finished", total)
        self._lock.release()

    def batches(self, n: int, size: int) -> Iterator["torch.Tensor"]:
        """Indices of the batches of this epoch that are not done, of n items in an order drawn when it begins."""
        import torch
        from tqdm import tqdm

        if self.order is None:
            self.order = torch.randperm(n, device=self.device)
        batches = self.order.split(size) if len(self.order) else ()
        for index in tqdm(batches, desc="training", leave=False, delay=2, disable=None):
            self.step += 1
            self.order = self.order[len(index) :]
            yield index
            if self.step % CHECK_EVERY == 0:
                self._raise_if_not_finite()
            self._stop_if_asked()

    def due(self, t: int, last: int) -> bool:
        """Whether to evaluate at t, an epoch or step of 1..last: at the first, the last, and by eval_freq."""
        return t == 1 or t % self.args.eval_freq == 0 or t == last

    def require_finite(self, **terms: "torch.Tensor") -> None:
        """Stop the run, with a `UserError` that names the step and the term, if one of these scalars is not finite.

        They are looked at later, before anything is written, so that a step does not wait for the device.
        """
        import torch

        bad = ~torch.stack([term.detach() for term in terms.values()]).isfinite()
        if self._first_bad is None:
            self._terms, self._first_bad = tuple(terms), torch.zeros(len(terms), dtype=torch.int64, device=self.device)
        self._first_bad = torch.where((self._first_bad == 0) & bad, self.step, self._first_bad)

    def _raise_if_not_finite(self) -> None:
        steps = {} if self._first_bad is None else dict(zip(self._terms, self._first_bad.tolist(), strict=True))
        first = min((step for step in steps.values() if step), default=0)
        if first:
            self._diverged(first, " and ".join(name for name, step in steps.items() if step == first))

    def _diverged(self, step: int, what: str) -> NoReturn:
        last = self.root / CHECKPOINTS[0]
        where = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
        raise UserError(f"step {step} (epoch {self.epoch + 1}): {what} not finite, expected numbers; {where}")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGTERM and Ctrl-C stop the run after its step; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame) -> None:
            self.stopped_by = number
            signal.signal(number, before[number])

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop_if_asked(self) -> None:
        if self.stopped_by is None:
            return
        self.checkpoint()
        self._write_state("stopped", self._total)
        name = signal.Signals(self.stopped_by).name
        go_on = f"go on with: python {self.script} --continue {self.root}"
        raise Stopped(self.stopped_by, f"stopped by {name} after step {self.step}; {go_on}")

    # --- what is written ---

    def log(self, t: int, **values: float) -> None:
        """Add a row to the table in the CSV file (columns `t` and the values), the text log and the terminal.

        Raises UserError where a value, or a term of the loss since the last row, is not finite.
        """
        self._raise_if_not_finite()
        for name, value in values.items():
            if not math.isfinite(value):
                self._diverged(self.step, f"{name} is")
        self.rows.append({"t": t, **values})
        self._logged = True
        self._write_logs()
        self._write_events(self.rows[-1:])
        from tqdm import tqdm  # prints above a progress bar

        tqdm.write(table_lines(self.rows, len(self.rows) - 1), file=sys.stdout)
        sys.stdout.flush()

    def _write_state(self, state: str, total: int) -> None:
        """What others can see of the run: running (killed, where no lock is held), stopped or finished."""
        self._total = total
        with write_whole(self.root / "state.yaml") as file:
            file.write(yaml.safe_dump({"state": state, "epoch": self.epoch, "epochs": total}).encode())

    def _write_logs(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]) if self.rows else ["t"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        lines = "".join(f"{table_lines(self.rows, i)}\n" for i in range(len(self.rows)))
        for suffix, content in (("csv", text.getvalue()), ("out", lines)):
            with write_whole(self.root / f"{self.script}-logs.{suffix}") as file:
                file.write(content.encode())

    def _start_events(self) -> None:
        """Let rows go to a file for TensorBoard too, the log's rows so far first.

        A continued run writes them again, in place of the old file, which may have rows after the checkpoint.
        """
        from torch.utils.tensorboard import SummaryWriter

        for old in self.root.glob("events.out.tfevents.*"):
            old.unlink()
        self._events = SummaryWriter(self.root)
        self._write_events(self.rows)

    def _write_events(self, rows: Sequence[dict[str, float]]) -> None:
        if self._events is None:
            return
        try:
            for row in rows:
                for name in row.keys() - {"t"}:
                    self._events.add_scalar(name, row[name], row["t"])
            self._events.flush()
        except OSError as error:
            raise UserError(f"{self.root}: events for TensorBoard cannot be written: {error.strerror}") from None

    def export(self) -> None:
        """Write the state dict of each tracked module and optimizer, each file whole, as `<name>.torch`."""
        for name, thing in self.tracked.items():
            state = thing.state_dict() if hasattr(thing, "state_dict") else None
            if state:
                write_tensors(self.root / f"{name}.torch", state)

    def checkpoint(self) -> None:
        """Write all that the run depends on, and keep the checkpoint before.

        The learning rate is a function of the epoch, so no scheduler has a state. Raises UserError where the loss or a
        parameter is not finite, and where the disk is full; the checkpoint before is still there then.
        """
        import utils

        self._raise_if_not_finite()
        state = utils.training_state(self.tracked)
        for name, value in utils.leaves(state):
            if hasattr(value, "isfinite") and not value.isfinite().all():
                self._diverged(self.step, f"{name.removeprefix('states.')} is")
        order = None if self.order is None else self.order.clone()
        state |= {"epoch": self.epoch, "step": self.step, "rows": len(self.rows), "order": order}
        last, before = (self.root / name for name in CHECKPOINTS)
        write_tensors(last, state, keep=before)


def table_lines(rows: Sequence[dict[str, float]], i: int) -> str:
    """Row i of the printed table, under its header where one is due."""
    table = tabulate.tabulate([list(rows[i].values())], list(rows[i]), tablefmt="simple", floatfmt="9.4g")
    return table.split("\n")[-1] if i % HEADER_EVERY else table


def read_rows(path: Path, what: str) -> list[dict[str, float]]:
    """The rows of a log. Raises UserError, which names the file as `what`."""
    try:
        with open(path, newline="") as file:
            rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        return [{**row, "t": int(row["t"])} for row in rows]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, csv.Error) as error:
        raise UserError(f"{what}: {path.name}: {error}, expected the log's table") from None


def interned(state: Any) -> Any:
    """A copy of nested containers in which equal strings are one object, as pickle writes repeated objects once.

    So a state that was loaded is written in the same bytes as one that was not.
    """
    if isinstance(state, dict):
        return type(state)((interned(key), interned(value)) for key, value in state.items())
    if isinstance(state, list | tuple):
        return type(state)(map(interned, state))
    return sys.intern(state) if isinstance(state, str) else state


def write_tensors(path: Path, state: dict[str, Any], keep: Path | None = None) -> None:
    """`torch.save` to a file that appears whole or not at all; what it replaces is kept as `keep`, where given."""
    import torch

    buffer = io.BytesIO()  # so that what can fail in the file is a plain write
    torch.save(interned(state), buffer)
    with write_whole(path, keep) as file:
        file.write(buffer.getbuffer())


class Stopwatch:
    """Seconds since it was made or last read."""

    def __init__(self):
        self.start = time.perf_counter()

    def lap(self) -> float:
        """The seconds, and a new start."""
        now = time.perf_counter()
        elapsed, self.start = now - self.start, now
        return elapsed
