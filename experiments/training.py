"""Training of runs given by lines of arguments, with a check that earlier ones learnt from the files of today."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from runs.errors import UserError
from runs.files import read_yaml
from sweeps.cluster import Resources, run_sweep
from sweeps.trials import find_script, line_trials, load_script

# The options that name images, and those that name VAEs, flows and kernels or say which of them are used.
IMAGES = ("data", "num_examples", "data_split_seed", "test_fraction", "model")
KERNELS = (
    *("vae_list", "flow_list", "filters_list", "train", "data_dir", "kernel_dim", "norm"),
    *("model", "net_cfg", "init_list", "prior", "prior_list", "dwp_reg"),
)


def train_lines(
    name: str, script: str, lines: Sequence[str], resources: Resources, command: str, accepted: str = ""
) -> list[Path | None]:
    """The run directories of trials of a script, given by their arguments. As `run_sweep`.

    Raises UserError before any training where an earlier run had other images, VAEs, flows or kernels.
    """
    trials, parse = line_trials(script, lines), load_script(find_script(script))["parse"]
    check_inputs([(Path(root), parse(trial.argv)) for trial in trials if (root := trial.record()["root"])])
    return run_sweep(name, trials, resources, command, accepted)


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
    """The fingerprints, by option, of the VAEs, flows and kernels at the paths in the arguments of a script."""
    import torch

    import utils
    from models.configs import SOURCES
    from models.image_vae import KERNEL_SIZES
    from runs.checkpoint import fingerprint

    if not hasattr(args, "init_list"):  # of train-vae.py
        kernels = utils.load_kernels(args.train or Path(args.data_dir, "train.npy"), args.kernel_dim, args.norm)
        return {"train": fingerprint([kernels])}
    sizes = () if hasattr(args, "model") else KERNEL_SIZES
    sources = utils.load_sources(args, torch.device("cpu"), sizes)
    inputs = utils.run_inputs(*[utils.DataSet(torch.empty(0), torch.empty(0))] * 2, sources)
    return {f"{kind}_list": fingerprint(inputs[f"{kind}_list"]) for kind in SOURCES}


def check_inputs(runs: Sequence[tuple[Path, Namespace]], images: bool = True) -> None:
    """Check that runs had the VAEs, flows and kernels, and with `images` also the images, that the paths in their
    arguments have now. Raises UserError.

    A trial is identified by its paths and not by what the files contain, so an earlier one may have had other files.
    """
    from runs.checkpoint import fingerprint, stored_inputs

    kinds = [(KERNELS, kernel_fingerprints)]
    if images:
        kinds.append((IMAGES, image_fingerprints))
    current: dict[str, dict[str, str]] = {}  # fingerprints, by the options that they depend on
    for root, args in runs:
        stored = stored_inputs(read_yaml(root / "params.yaml"))
        for options, find in kinds:
            key = repr([(option, getattr(args, option, None)) for option in options])
            if key not in current:
                current[key] = find(args)
            for option, expected in current[key].items():
                if stored.get(option, fingerprint([])) != expected:
                    expectation = "expected the same; new runs need another DWP_PATH"
                    raise UserError(f"{root}: its --{option} has changed since this run, {expectation}")
