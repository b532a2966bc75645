"""The options of the commands: the parser, the types of values, and the groups that scripts share.

This module does not import torch, so `--help` and errors in arguments appear at once.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from models.configs import DATA_SETS, INITS, MODELS, N_CLASSES, PRIORS, SOURCES
from runs.errors import UserError, require_packages, user_error
from runs.files import read_yaml
from runs.types import (
    ON_OFF,
    POSITIVE,
    SEED,
    SWITCH,
    WHOLE,
    aug_type,
    data_type,
    number_type,
    path_type,
)

HID_DIM = [32, 64]  # the default
RUN_KEYS = ("root", "time", "id", "environment", "inputs", "classes")  # keys of params.yaml that are not arguments
# Arguments that params.yaml omits; `priors` is derived from the others.
NOT_STORED = ("config", "continue_run", "overrides", "priors")
# Options on which no result depends: two runs that differ in these alone are the same run.
NOT_IDENTIFYING = (*NOT_STORED, "name", "tmp", "device", "tensorboard", "checkpoint_freq")
# Options that were added when there were trials. Without a value they do not identify a trial, so its key stays.
ADDED = ("test_fraction", "init_scale")
OLD_VALUES = {"lr_schedule": "linear"}  # of options in runs from before the option, where that is not its default


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with the default of each option, and the description with its own line breaks."""

    def _get_help_string(self, action: argparse.Action) -> str:
        empty = action.default is None or action.default in ("", [])
        return f"{action.help} (default: none)" if empty else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose help states defaults and whose errors are `UserError`s.

    Parameters
    ----------
    description : the help's first paragraphs.
    script : name of a script with run directories, whose parser also reads `--config FILE.yaml` and `--continue DIR`.
    """

    def __init__(self, description: str, script: str = ""):
        super().__init__(description=description, allow_abbrev=False, formatter_class=HelpFormatter)
        self.script = script
        self._negative_number_matcher = re.compile(r"-(\d+\.?|\d*\.\d+)(e[+-]?\d+)?$", re.IGNORECASE)  # -1e1 is a value

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse_args(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse `argv`. Options on the command line override those in the file of `--config`.

        With `--continue` every option has the value that the run was started with. Another value is refused, but for
        options on which no result depends, and paths, whose content a run checks. `overrides` maps these to the value
        before.
        """
        args = self._parse(list(sys.argv[1:] if argv is None else argv))
        if getattr(args, "tensorboard", 0):  # of the run that is continued it may be 1 where the package is missing
            require_packages("--tensorboard: found 1", "tensorboard")
        return args

    def _parse(self, argv: list[str]) -> argparse.Namespace:
        if not self.script:
            return super().parse_args(argv)
        before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        before.error = self.error
        before.add_argument("--config")
        before.add_argument("--continue", dest="continue_run")
        given, argv = before.parse_known_args(argv)
        if given.continue_run is None:
            return super().parse_args(self._argv_from_file(given.config) + argv if given.config else argv)

        folder = path_type(given.continue_run)
        label = f"--continue {folder}"
        if given.config:
            self.error(f"{label}: found --config too, expected the run's own arguments")
        file = Path(folder) / "params.yaml"
        with user_error("--continue"):
            params = read_yaml(file)
        environment = params.get("environment")
        script = environment.get("script") if isinstance(environment, dict) else None
        if script != self.script:
            self.error(f"{label}: found a run of {script or 'an unknown script'}, expected one of {self.script}")
        stored = self._argv_from_file(file)
        own, args = super().parse_args(stored), super().parse_args(stored + argv)
        paths = {action.dest for action in self._actions if action.type in (path_type, data_type)}
        overridable = (paths | set(NOT_IDENTIFYING)) - {"tmp", "resume", "resume_vae", "resume_opt"}
        args.overrides = {key: value for key, value in vars(own).items() if value != getattr(args, key)}
        for key, value in args.overrides.items():
            if key not in overridable:
                more = {
                    "epochs": f"; to train on, start a run with --resume {folder}",
                    "num_epochs": f"; to train on, start a run with --resume_vae {folder}/vae_params.torch",
                }.get(key, "")
                self.error(f"--{key}: found {getattr(args, key)}, expected the run's own {value} with {label}{more}")
        args.continue_run = folder
        return args

    def _argv_from_file(self, path: str | Path) -> list[str]:
        """The options in a YAML file as words of a command line; unknown options are reported and ignored.

        Options that the params.yaml of one of our runs lacks have their OLD_VALUES.
        """
        known = {
            action.dest: action for action in self._actions if action.dest not in ("help", "config", "continue_run")
        }
        argv, ignored = [], []
        with user_error("--config"):
            params = read_yaml(path, as_text=True)
        if isinstance(params.get("environment"), dict):
            params = {key: value for key, value in OLD_VALUES.items() if key in known} | params
        for key, value in params.items():
            if key in RUN_KEYS:
                continue
            if key not in known:
                ignored.append(key)
            elif isinstance(value, dict):
                self.error(f"{path}: {key}: found a mapping, expected a value or a list of values")
            elif isinstance(known[key], argparse._StoreTrueAction):
                if value is not None and value.lower() not in SWITCH:
                    self.error(f"{path}: {key}: found {value}, expected true or false")
                argv += [f"--{key}"] if value and SWITCH[value.lower()] else []
            elif isinstance(value, list):
                argv += [f"--{key}", *value]
            elif value:
                argv.append(f"--{key}={value}")
        if ignored:
            print(f"{path}: ignored, not options of this script: {', '.join(ignored)}", file=sys.stderr)
        return argv


def add_run_options(parser: Parser, unit: str = "epochs") -> None:
    """Add the options of every script: its run directory, its seed and its device. `unit` is that of `eval_freq`."""
    group = parser.add_argument_group("run")
    group.add_argument("--name", default="", help="a note kept in params.yaml")
    group.add_argument("--config", metavar="FILE", help="YAML file of arguments, e.g. a run's params.yaml")
    group.add_argument(
        "--continue",
        dest="continue_run",
        metavar="RUN_DIR",
        help="continue a stopped run from its checkpoint, in its directory and with its arguments; "
        "device, name and paths of the same content may be given anew",
    )
    group.add_argument("--tmp", action="store_true", help="put the run under tmp/ instead of runs/")
    group.add_argument("--seed", type=SEED, default=42, help="seed of every random number")
    group.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="device that computes")
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16", "auto"),
        default="fp32",
        help="'bf16': convs and products in bfloat16, parameters and sums in float32; 'auto': bf16 where it is native",
    )
    group.add_argument(
        "--eval_freq",
        type=number_type(int, 0),
        default=1,
        help=f"{unit} between evaluations, which also write the model; 0: one at the end",
    )
    group.add_argument(
        "--checkpoint_freq",
        type=number_type(int, 0),
        default=0,
        help="epochs between the checkpoints that --continue needs; 0: after evaluations, or 5 minutes",
    )
    group.add_argument(
        "--tensorboard",
        **ON_OFF,
        help="1: also write the log for TensorBoard, in the run directory",
    )


def add_compile_option(group: argparse._ArgumentGroup) -> None:
    """Add the option of the scripts whose training step torch can compile as a whole."""
    help = "1: torch.compile the training step; needs a compiler, and starts slowly"
    group.add_argument("--compile", **ON_OFF, help=help)


def add_network_options(parser: Parser, net_cfg: str) -> None:
    """Add the options that the training of a deterministic and of a Bayesian network share."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=data_type,
        metavar="NAME",
        default="mnist",
        help=f"data set, read from $DATA_ROOT: {', '.join(DATA_SETS)}; or a file PATH.npz with MedMNIST's layout; "
        "or the path of a folder with images in train/<class>/ and test/<class>/, or in <class>/",
    )
    data.add_argument(
        "--test_fraction",
        type=number_type(float, 0, 0.99, open_low=True),
        help="share of each class for testing, of a folder without train/; none: 0.2",
    )
    data.add_argument("--num_examples", type=WHOLE, help="train on a subset of this many images, stratified by class")
    data.add_argument(
        "--data_split_seed",
        type=number_type(int, 0, 2**32 - 1),
        default=42,
        help="seed of that subset, and of the test part of a folder without train/",
    )
    data.add_argument("--bs", type=WHOLE, default=256, help="images per training batch")
    data.add_argument("--test_bs", type=WHOLE, default=500, help="images per test batch; at most 100 on a CPU")
    data.add_argument(
        "--aug",
        type=aug_type,
        choices=(0, 1, "affine"),
        default=0,
        help="1: random crops of the images padded by 4, and flips; affine: small shifts, rotations and scales",
    )

    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=WHOLE, default=100, help="passes over the training images")
    training.add_argument("--lr", type=POSITIVE, default=1e-3, help="Adam's initial learning rate")
    training.add_argument(
        "--decrease_from", type=number_type(int, 0), default=0, help="epoch after which lr falls linearly to 0"
    )
    training.add_argument(
        "--milestones",
        type=WHOLE,
        nargs="*",
        default=[],
        help="first epochs of the rate multiplied by gamma, instead of the linear fall",
    )
    training.add_argument("--gamma", type=POSITIVE, default=0.5, help="factor of lr at each milestone")
    training.add_argument(
        "--resume", type=path_type, metavar="RUN_DIR", default="", help="start from a run's model and optimizer"
    )

    model = parser.add_argument_group("network")
    model.add_argument("--model", choices=tuple(MODELS), default="fconv", help="architecture")
    model.add_argument("--net_cfg", default=net_cfg, help="configuration of the model (see models/README.md)")
    given = ", ".join(name for name, row in MODELS.items() if not row.channels)
    scaled = ", ".join(name for name, row in MODELS.items() if row.channels)
    model.add_argument("--hid_dim", type=WHOLE, nargs="+", default=HID_DIM, help=f"channels of each conv of {given}")
    model.add_argument(
        "--model_size", type=number_type(float, 0, 1e6, open_low=True), default=1.0, help=f"channel factor of {scaled}"
    )
    help = "outputs of the classifier; none: 10, of cifar100 100, of a file or folder as many as its classes"
    model.add_argument("--n_classes", type=number_type(int, 2), help=help)

    init = add_init_options(parser, tuple(INITS))
    init.add_argument(
        "--pretrained", type=path_type, metavar="FILE", default="", help="state dict of a network (init 'pretrained')"
    )
    init.add_argument(
        "--pretrained_classifier",
        **ON_OFF | {"default": 1},
        help="0: of the file 'pretrained' only the layers before the classifier are taken",
    )


def add_init_options(parser: Parser, inits: Sequence[str]) -> argparse._ArgumentGroup:
    """Add and return the group of options that initialize convs by one of `inits`, with the files that these need."""
    init = parser.add_argument_group("initialization, by conv layer in order")
    init.add_argument(
        "--init_list",
        choices=inits,
        nargs="*",
        default=[],
        help="initialization of each conv; 'pretrained', alone, is of all convs at once",
    )
    for kind, entry in SOURCES.items():
        users = [f"init '{name}'" for name, row in INITS.items() if kind in row.needs]
        users += [f"prior '{name}'" for name, row in PRIORS.items() if kind in row.needs]
        init.add_argument(
            f"--{kind}_list",
            type=path_type,
            metavar="PATH",
            nargs="*",
            default=[],
            help=f"{entry} of each conv ({', '.join(users)})",
        )
    return init


def check_net_cfg(args: argparse.Namespace, bayesian: bool) -> None:
    """Check that `net_cfg` is a configuration of the model, with Bayesian convs or without. Raises UserError."""
    model = MODELS[args.model]
    names = [name for name in model.net_cfgs if any(model.config(name).bayesian) == bayesian]
    if args.net_cfg not in names:
        raise UserError(f"--net_cfg: found {args.net_cfg!r}, expected one of {', '.join(names)} for {args.model}")


def check_network_options(args: argparse.Namespace, priors: Sequence[str] = ()) -> None:
    """Check that the network's options fit together; `priors` are those of the conv layers. Raises UserError.

    Without `n_classes` a classifier has 10 outputs for a data set with a name, or as many as N_CLASSES says.
    """
    if args.n_classes is None and args.data in DATA_SETS:
        args.n_classes = N_CLASSES.get(args.data, 10)
    model = MODELS[args.model]
    sizes = model.kernel_sizes
    if not model.channels and len(args.hid_dim) != len(sizes):
        raise UserError(f"--hid_dim: found {len(args.hid_dim)} numbers, expected {len(sizes)} for {args.model}")
    if model.channels and args.hid_dim != HID_DIM:
        raise UserError(f"--hid_dim: found {args.hid_dim}, expected --model_size for {args.model}")
    if not model.channels and args.model_size != 1:
        raise UserError(f"--model_size: found {args.model_size:g}, expected --hid_dim for {args.model}")
    if model.channels and not min(model.widths([], args.model_size)):
        raise UserError(f"--model_size: found {args.model_size:g}, expected enough for a channel in every conv")
    if "pretrained" in args.init_list and len(args.init_list) > 1:
        raise UserError(
            f"--init_list: found {' '.join(args.init_list)}, expected 'pretrained' alone: it fills every conv"
        )
    if model.least_batch > min(args.bs, args.num_examples or args.bs):
        option = "bs" if args.bs < model.least_batch else "num_examples"
        raise UserError(
            f"--{option}: found {getattr(args, option)}, expected at least {model.least_batch} for {args.model}: "
            "batch norm takes the variance over a batch"
        )
    if not args.milestones and args.decrease_from >= args.epochs:
        raise UserError(f"--decrease_from: found {args.decrease_from}, expected less than --epochs {args.epochs}")
    if bool(args.pretrained) != ("pretrained" in args.init_list):
        raise UserError("--pretrained FILE and --init_list pretrained go together: found one without the other")
    if not (args.pretrained or args.pretrained_classifier):
        raise UserError("--pretrained_classifier: found 0 without --pretrained, expected a file")
    check_init_options(args, len(sizes), priors)


def check_init_options(args: argparse.Namespace, convs: int, priors: Sequence[str] = ()) -> None:
    """Check that initializations and priors of this many convs have the files that they need. Raises UserError."""
    if len(args.init_list) > convs:
        raise UserError(f"--init_list: found {len(args.init_list)} entries, expected at most {convs} convs")
    for kind in SOURCES:
        given = getattr(args, f"{kind}_list")
        if len(given) > convs:
            raise UserError(f"--{kind}_list: found {len(given)} entries, expected at most {convs} convs")
        for names, table in ((args.init_list, INITS), (priors, PRIORS)):
            for i, name in enumerate(names[len(given) :], len(given) + 1):
                if kind in table[name].needs:
                    raise UserError(f"--{kind}_list: found {len(given)} entries, expected one for conv {i} ({name!r})")


def learning_rate(
    epoch: int, epochs: int, lr: float, decrease_from: int = 0, milestones: Sequence[int] = (), gamma: float = 0.5
) -> float:
    """Adam's rate in epoch 1..epochs: steps where given, else linear after `decrease_from`.

    From epoch m in `milestones` on, that epoch included, the rate has one factor `gamma` more.
    """
    if milestones:
        return lr * gamma ** sum(epoch >= milestone for milestone in milestones)
    return lr * min(1.0, (epochs - epoch + 1) / (epochs - decrease_from))
