"""Training of runs given by lines of arguments, with a check that finished ones learnt from the files of today."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from runs.errors import UserError
from runs.files import read_yaml
from sweeps.cluster import Resources, run_sweep
from sweeps.trials import find_script, line_trials, load_script

# The options that name VAEs, flows and kernels, and those that say which of them are used.
OPTIONS = (
    "vae_list",
    "flow_list",
    "filters_list",
    "train",
    "data_dir",
    "model",
    "init_list",
    "prior",
    "prior_list",
    "dwp_reg",
)


def train_lines(
    name: str, script: str, lines: Sequence[str], resources: Resources, command: str, accepted: str = ""
) -> list[Path | None]:
    """The run directories of trials of a script, given by their arguments. As `run_sweep`.

    Raises UserError where a run had other VAEs, flows or kernels.
    """
    roots = run_sweep(name, line_trials(script, lines), resources, command, accepted)
    check_sources(script, [root for root in roots if root])
    return roots


def source_fingerprints(args: Namespace) -> dict[str, str]:
    """The fingerprints, by option, of the VAEs, flows and kernels at the paths in the arguments of a script."""
    import torch

    import utils
    from models.configs import SOURCES
    from models.image_vae import KERNEL_SIZES
    from runs.checkpoint import fingerprint

    if not hasattr(args, "init_list"):  # of train-vae.py
        kernels = utils.load_kernels(args.train or Path(args.data_dir, "train.npy"), args.kernel_dim)
        return {"train": fingerprint([kernels])}
    sizes = () if hasattr(args, "model") else KERNEL_SIZES
    sources = utils.load_sources(args, torch.device("cpu"), sizes)
    inputs = utils.run_inputs(*[utils.DataSet(torch.empty(0), torch.empty(0))] * 2, sources)
    return {f"{kind}_list": fingerprint(inputs[f"{kind}_list"]) for kind in SOURCES}


def check_sources(script: str, roots: Sequence[Path]) -> None:
    """Check that runs of a script had the VAEs, flows and kernels that their paths have now. Raises UserError.

    A trial is identified by its paths and not by what the files contain, so a finished one may have had other files.
    """
    from runs.checkpoint import fingerprint

    current: dict[str, dict[str, str]] = {}  # fingerprints, by the options that they depend on
    for root in roots:
        params = read_yaml(root / "params.yaml")
        key = repr([params.get(option) for option in OPTIONS])
        if key not in current:
            args = load_script(find_script(script))["parse"](["--config", str(root / "params.yaml")])
            current[key] = source_fingerprints(args)
        for option, expected in current[key].items():
            if params.get("inputs", {}).get(option, fingerprint([])) != expected:
                raise UserError(
                    f"{root}: its --{option} has changed since this run, expected the same: use another DWP_PATH"
                )
