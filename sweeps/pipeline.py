"""Train source networks, extract their kernels, train VAEs on the kernels, and train Bayesian networks under the VAEs.

    python -m sweeps.pipeline --scale smoke|laptop|cifar|paper [--source DATA] [--out DIR] [-- --cpus 2 ...]

sweeps/scales.py has the arguments of every stage. Networks and VAEs are trained by sweeps; the options after `--` are
theirs: --cpus, --gpus, --retries and --address of `python -m sweeps`. A stage is skipped if its stamp in DIR/stages has
the same arguments and the same input and output files, by SHA-256. The command writes kernels and VAEs into folders
named by their content, conv7x7-<hash>, vae7x7-<hash>, ...; into rank-<network>.csv the accuracies of VAEs of several
seeds as priors, of which the median one is taken (sweeps/rank_vaes.py); into figures/ histograms of norms, the kernels,
and what the VAEs have learnt; into results/ the tables of the Bayesian networks and page.html.
"""

import functools
import io
import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from models.configs import DATA_SETS, MODELS
from runs.directory import data_root, dwp_path
from runs.errors import UserError, one_line_errors, require_packages, user_error
from runs.files import read_yaml, sha256, write_yaml
from runs.log import write_csv
from runs.options import Parser
from runs.types import data_type
from sweeps.cluster import parse_resources
from sweeps.collect import collect
from sweeps.grid import make_trials, split_command, split_options
from sweeps.rank_vaes import rank
from sweeps.scales import SCALES, Scale, filled
from sweeps.stages import Context, run_stage, store_by_content, sweep_stage
from sweeps.trials import find_script, load_script

VAE_FILES = ("params.yaml", "vae_params.torch")
NEAR = 0.05  # kernels of a network within this relative distance count as one
SPLIT_SEED = 42  # of the kernels' split into train and test
FIGURE_SEED = 0
ELBO_SAMPLES = 10  # draws of z per kernel


def check_data(scale: Scale, source: str) -> tuple[int, dict[str, str]]:
    """Load the images of all networks, and return the number of training images of the source data set, and hashes.

    These are the SHA-256 of notMNIST's files, and of the images of a file or folder `source`. The loaders check the
    files of other data sets. Raises UserError where a data set is missing or does not suit its networks, before
    anything is trained.
    """
    import torch

    import utils
    from runs.checkpoint import fingerprint

    places = scale.places(source, 1) | {f"vae{name}": "vae" for name in scale.vaes}
    loaded, shapes = set(), set()
    for name, script, grid, shared in scale.stages(places):
        path, ranks = find_script(script), name.startswith("rank-")
        for trial in make_trials(path, split_options(shlex.split(grid))[1], shared):
            args = load_script(path)["parse"](trial.argv)
            images = (args.data, args.model, args.num_examples, args.data_split_seed, ranks)
            if images in loaded:
                continue
            loaded.add(images)
            with user_error(f"{name}:"):
                train, test = utils.load_split(args, torch.device("cpu"))
                if ranks:  # by test images
                    utils.check_test_data({"data": args.data}, train, test)
            if args.data == source:
                shapes.add(MODELS[args.model].image_shape)
    n, hashes = 0, {}
    for shape in shapes:
        parts = utils.load_data(source, shape)  # whole, whatever the stages learn from
        n = len(parts[0].labels)
        if source not in DATA_SETS:
            hashes[f"{source} as {shape}"] = fingerprint([tensor for part in parts for tensor in part])
    if any(images[0].startswith("not-mnist") for images in loaded):
        files = (data_root() / "not-mnist" / "MNIST" / "raw").glob("*-ubyte*")
        hashes |= {file.name: sha256(file) for file in sorted(files)}
    return n, hashes


def extract_kernels(out: Path, name: str, min_norm: float, models: Sequence[Path]) -> list[Path]:
    """Write the kernels of networks, "5x5" or "5x5-2" of conv 2, as `conv<name>-<hash>/`, and return the files.

    A histogram of their norms is among the files.
    """
    import numpy as np

    import utils
    from runs.checkpoint import load_state
    from sweeps.plots import plot_norms
    from sweeps.vae_figures import save_all

    networks = [utils.get_kernels(load_state(model)) for model in models]
    sources = utils.kernels_named(networks, name)
    with user_error(f"min_norm of {name} kernels:"):
        parts = utils.extract_kernels(sources, min_norm, NEAR, SPLIT_SEED)
    norms = np.concatenate([kernels.flatten(1).norm(dim=1).numpy() for kernels in sources])
    print(f"{name}: {len(norms)} kernels of {len(networks)} networks, {sum(map(len, parts.values()))} are kept")
    histogram = save_all({f"norms{name}.png": plot_norms({name: norms}, {name: min_norm})}, out / "figures")
    contents = {}
    for part in ("train", "test"):
        file = io.BytesIO()
        np.save(file, parts[part].numpy().astype(np.float32), allow_pickle=False)
        contents[f"{part}.npy"] = file.getvalue()
    return [*histogram, *store_by_content(contents, out / f"conv{name}")]


def size_of(name: str) -> str:
    """The size of the kernels of this name: "5x5" of "5x5-2"."""
    return name.split("-")[0]


def median_candidate(
    out: Path, name: str, candidates: Sequence[Sequence[Path]], network: Sequence[str]
) -> Sequence[Path]:
    """The candidate, a VAE's folder for each conv, with the median accuracy; `rank-<name>.csv` has those of all.

    The median, because the best of several is partly luck. Of an even number it is the better of the two in the middle.
    """
    import pandas as pd

    table = out / f"rank-{name}.csv"

    def make() -> list[Path]:
        return [write_csv(table, rank([[str(folder) for folder in folders] for folders in candidates], network))]

    inputs = [folder / file for folders in candidates for folder in folders for file in VAE_FILES]
    run_stage(out, f"rank-{name}", network, inputs, make)
    return candidates[pd.read_csv(table)["acc"].argsort(kind="stable")[len(candidates) // 2]]


def write_figures(folder: Path, scale: Scale, convs: Mapping[str, Path], vaes: Mapping[str, Path]) -> list[Path]:
    """Write figures of the kernels and VAEs and the table of test ELBOs, in nats per kernel, and return the files.

    `convs` and `vaes` are the folders of kernels and of VAEs by name. The ELBO is that of the kernels as a VAE learns
    them, scaled to its `--norm`.
    """
    import torch

    import utils
    from sweeps.vae_figures import kernel_figures, latent_figures, load_kernels_for, save_all, test_elbo, vae_figures

    files, rows = [], []
    for name, conv in convs.items():
        files += save_all(kernel_figures(conv, name), folder)
    for name, path in vaes.items():
        conv = convs[scale.vaes[name].kernels]
        vae, test_kernels = utils.load_vae(path), load_kernels_for(path, conv / "test.npy")
        if vae.z_dim == 2:
            files += save_all(latent_figures(vae, test_kernels, name), folder)
        torch.manual_seed(FIGURE_SEED)
        drawn = test_kernels[torch.randperm(len(test_kernels))[: scale.figure_kernels]]
        with user_error(f"{conv / 'test.npy'}:"):
            figures, kl = vae_figures(vae, drawn, scale.figure_samples)
        files += save_all(figures, folder / f"vae{name}", tight=True)
        files.append(write_csv(folder / f"vae{name}" / "kl.csv", kl))
        torch.manual_seed(FIGURE_SEED)
        elbo, error = test_elbo(vae, test_kernels, ELBO_SAMPLES)
        rows.append({"vae": name, "test_elbo": elbo, "standard_error": error})
    return [write_csv(folder / "elbo.csv", rows), *files]


def run_pipeline(context: Context, scale: Scale, places: dict[str, str]) -> list[Path]:
    """Run all stages in order, and return the folders of the kernels and of the VAEs.

    `places` has what `{source}` and so on stand for in the arguments of networks.
    Raises Stopped after a stop signal, UserError, and SystemExit where a trial failed.
    """
    out, models = context.out, {}
    for name, (grid, shared) in scale.nets.items():
        files = sweep_stage(context, f"nets-{name}", "train-net.py", grid, filled(shared, places))
        models[name] = [file for file in files if file.name == "model.torch"]

    kernels: dict[str, list[Path]] = {}  # the arrays by name
    for name, (nets, min_norm) in scale.kernels.items():
        sources = [model for net in nets for model in models[net]]
        make = functools.partial(extract_kernels, out, name, min_norm, sources)
        files = run_stage(out, f"kernels{name}", [f"--min_norm_{size_of(name)}", str(min_norm)], sources, make)
        kernels[name] = [file for file in files if file.suffix == ".npy"]

    trained: dict[str, list[Path]] = {}
    for name, (learnt, shared, seeds) in scale.vaes.items():
        arrays = kernels[learnt]
        dim = size_of(learnt).split("x")[0]
        words = ["--kernel_dim", dim, "--data_dir", str(arrays[0].parent), *shlex.split(shared)]
        files = sweep_stage(context, f"train-vae{name}", "train-vae.py", seeds, words, arrays)
        trained[name] = list(dict.fromkeys(file.parent for file in files))

    chosen, vaes = {name: folders[0] for name, folders in trained.items()}, {}
    for name, (names, network) in scale.rankings.items():
        candidates = list(zip(*(trained[kernels] for kernels in names), strict=True))
        chosen |= zip(names, median_candidate(out, name, candidates, filled(network, places)), strict=True)
    for name, folder in chosen.items():
        files = [folder / file for file in VAE_FILES]
        contents = {file.name: file.read_bytes() for file in files}
        make = functools.partial(store_by_content, contents, out / f"vae{name}")
        vaes[name] = run_stage(out, f"vae{name}", VAE_FILES, files, make)[0].parent

    results = []
    places = places | {f"vae{name}": str(vae) for name, vae in vaes.items()}
    priors = [vae / name for vae in vaes.values() for name in VAE_FILES]
    for name, (grid, shared) in scale.bnns.items():
        results += sweep_stage(context, f"bnns-{name}", "train-bnn.py", grid, filled(shared, places), priors)

    convs = {name: arrays[0].parent for name, arrays in kernels.items()}
    arguments = ["--kernels", str(scale.figure_kernels), "--samples", str(scale.figure_samples)]
    make = functools.partial(write_figures, out / "figures", scale, convs, vaes)
    run_stage(out, "figures", arguments, [*priors, *itertools.chain(*kernels.values())], make)
    if results:
        by, roots = scale.by.split(), list(dict.fromkeys(file.parent for file in results))
        make = functools.partial(collect, roots, by, out / "results", html=True)
        run_stage(out, "results", ["--by", *by, "--html", "--out", str(out / "results")], results, make)
    return [*convs.values(), *vaes.values()]


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    own, sweep_words = split_command(argv)
    parser = Parser(__doc__)
    parser.add_argument("--scale", choices=tuple(SCALES), required=True, help="which arguments the stages have")
    help = "data set of the source networks and of the ranking of VAEs: a name, an npz file or a folder; none: "
    help += ", ".join(f"{scale.source} at scale {name}" for name, scale in SCALES.items())
    parser.add_argument("--source", type=data_type, metavar="DATA", help=help)
    parser.add_argument("--out", type=Path, help="folder for all but the runs, by default $DWP_PATH/pipeline/<scale>")
    args = parser.parse_args(own)
    resources = parse_resources(sweep_words)
    require_packages("pipeline", "ray", "pandas", "pyarrow")
    scale, out = SCALES[args.scale], (args.out or dwp_path() / "pipeline" / args.scale).absolute()
    source = args.source or scale.source
    n, hashes = check_data(scale, source)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock", timeout=0).acquire()
    except Timeout:
        raise UserError(f"--out {out}: already in use by another pipeline") from None
    except OSError as error:
        raise UserError(f"--out: {out}: {error.strerror}, expected a folder to write into") from None
    with lock:
        stamp = out / "stages" / "data.yaml"
        if stamp.exists() and read_yaml(stamp) != hashes:  # data do not identify a trial
            raise UserError(f"--source: found other images than those of {stamp}, expected a new --out and DWP_PATH")
        write_yaml(stamp, hashes)
        context = Context(out, resources, f"python -m sweeps.pipeline {shlex.join(argv)}")
        folders = run_pipeline(context, scale, scale.places(source, n))
    print(f"all results are in {out}: kernels and VAEs in", *(folder.name for folder in folders))


if __name__ == "__main__":
    main()
