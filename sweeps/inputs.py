"""What trials learn from: whether it is there before the first of them runs, and the same as for earlier ones."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runs.errors import UserError, user_error
from runs.files import read_yaml
from sweeps.trials import Trial, load_script

# The options that name images, and those that name VAEs, flows, kernels and weights or say which of them are used.
IMAGES = ("data", "num_examples", "data_split_seed", "test_fraction", "model")
KERNELS = (
    *("vae_list", "flow_list", "filters_list", "train", "data_dir", "kernel_dim", "norm"),
    *("model", "net_cfg", "init_list", "prior", "prior_list", "dwp_reg", "pretrained"),
)


def image_fingerprints(args: Namespace) -> dict[str, str]:
    """The fingerprint of the images and labels that the arguments of a network's script name."""
    import torch

    import utils
    from models.configs import MODELS
    from runs.checkpoint import fingerprint

    if not hasattr(args, "data"):  # of train-vae.py
        return {}
    if hasattr(args, "model"):
        parts = utils.load_split(args, torch.device("cpu"))
    else:
        parts = utils.load_data(args.data, MODELS["fconv"].image_shape)
    return {"data": fingerprint(utils.run_inputs(*parts, [])["data"])}


def kernel_fingerprints(args: Namespace) -> dict[str, str]:
    """The fingerprints, by option, of the VAEs, flows, kernels and weights that the arguments of a script name."""
    import torch

    import utils
    from models.configs import SOURCES
    from models.image_vae import KERNEL_SIZES
    from runs.checkpoint import fingerprint

    if not hasattr(args, "init_list"):  # of train-vae.py
        with user_error("--train"):
            kernels = utils.load_kernels(args.train or Path(args.data_dir, "train.npy"), args.kernel_dim, args.norm)
        return {"train": fingerprint([kernels])}
    sizes = () if hasattr(args, "model") else KERNEL_SIZES
    sources = utils.load_sources(args, torch.device("cpu"), sizes)
    with user_error("--pretrained"):
        none = utils.DataSet(torch.empty(0), torch.empty(0))
        inputs = utils.run_inputs(none, none, sources, getattr(args, "pretrained", ""))
    return {option: fingerprint(inputs[option]) for option in ("pretrained", *(f"{kind}_list" for kind in SOURCES))}


def check_inputs(runs: Sequence[tuple[Path | None, Namespace]], images: bool = True) -> None:
    """Load the VAEs, flows, kernels and weights that the arguments of runs name, and with `images` also the images.

    Checks that they are those that a run with a directory had. Raises UserError.
    """
    from runs.checkpoint import fingerprint, stored_inputs

    kinds = [(KERNELS, kernel_fingerprints)]
    if images:
        kinds.append((IMAGES, image_fingerprints))
    current: dict[str, dict[str, str]] = {}  # fingerprints, by the options that they depend on
    for root, args in runs:
        stored = stored_inputs(read_yaml(root / "params.yaml")) if root else {}
        for options, find in kinds:
            key = repr([(option, getattr(args, option, None)) for option in options])
            if key not in current:
                current[key] = find(args)
            for option, expected in current[key].items():
                if root and stored.get(option, fingerprint([])) != expected:
                    expectation = "expected the same; new runs need another DWP_PATH"
                    raise UserError(f"{root}: its --{option} has changed since this run, {expectation}")


def check_trials(records: Sequence[tuple[Trial, Mapping[str, Any]]]) -> None:
    """Check what trials of the project's scripts, given with their records, learn from, before one of them runs.

    A trial is identified by its paths and not by what the files contain, so one that has begun may have had others. Of
    those that have not, the first is checked: what is missing for it is most often missing for all, and each of them
    would take seconds to say so. Raises UserError.
    """
    own = [(trial, record["root"]) for trial, record in records if trial.in_project]
    begun = [(trial, Path(root)) for trial, root in own if root]
    first = [(trial, None) for trial, root in own if not root][:1]
    check_inputs([(root, load_script(trial.script)["parse"](trial.argv)) for trial, root in begun + first])
