"""Source networks, their kernels, VAEs of these, Bayesian networks under them: one command that can be stopped.

    python -m experiments.pipeline --scale smoke|laptop|paper [--out DIR] [-- --cpus 2 --address HOST:PORT ...]

The arguments of every stage stand in experiments/scales.py. Networks and VAEs are trained by `experiments.sweep`, which
takes what stands after `--`. A stage whose stamp in DIR/stages names the same arguments, the same input files and the
same output files, by their SHA-256, is not run again. A trial of a sweep is known by its arguments, so kernels and VAEs
lie in folders whose names have a hash of what they hold. In DIR are, at the end, conv7x7-<hash>, vae7x7-<hash>, ...;
figures/ with histograms of norms, kernels, and what the VAEs have learnt; results/ with the tables of the Bayesian
networks and page.html.
"""

import csv
import functools
import glob
import hashlib
import io
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from experiments import sweep
from experiments.scales import SCALES, Scale
from experiments.trials import dwp_path
from runs import Parser, UserError, command, data_root, read_yaml, require_packages, write_whole

WEIGHTS = {"train-net.py": "model.torch", "train-vae.py": "vae_params.torch", "train-bnn.py": "model.torch"}
VAE_FILES = ("params.yaml", "vae_params.torch")
MISSING = "missing"  # in place of a file's hash


# --- stages -------------------------------------------------------------------------------------------------------


def digests(files: Sequence[Path]) -> dict[str, str]:
    """The SHA-256 of each file, MISSING where there is none."""
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() if f.is_file() else MISSING for f in files}


def read_stamp(file: Path) -> dict:
    """The arguments, inputs and outputs of a stage that was done; nothing where it was not, or the stamp is damaged."""
    if not file.exists():
        return {}
    try:
        stamp = read_yaml(file, str(file))
    except UserError as error:
        print(f"{error}; the stage runs again", file=sys.stderr)
        return {}
    kinds = {key: type(value) for key, value in stamp.items()}
    return stamp if kinds == {"arguments": list, "inputs": dict, "outputs": dict} else {}


def stage(
    out: Path,
    name: str,
    arguments: Sequence[str],
    inputs: Sequence[Path],
    make: Callable[[], Sequence[Path]],
    put_aside: Callable[[Path], None] | None = None,
) -> list[Path]:
    """The output files of a stage, which `make` makes unless the stamp says that they are there already.

    `put_aside` is called first with each output that is not what the stamp says, or is missing.
    """
    file = out / "stages" / f"{name}.yaml"
    arguments, found = list(arguments), digests(inputs)
    stamp = read_stamp(file)
    outputs = [Path(path) for path in stamp.get("outputs", ())]
    now = digests(outputs)
    changed = [path for path in outputs if now[str(path)] != stamp["outputs"][str(path)]]
    # Where an input lies does not count: a run that was made again has another number.
    same = stamp and stamp["arguments"] == arguments and list(stamp["inputs"].values()) == list(found.values())
    if same and not changed:
        print(f"{name}: done before", flush=True)
        return outputs
    print(f"{name}: {shlex.join(arguments)}", flush=True)
    for path in changed if put_aside else ():
        put_aside(path)
    try:
        outputs = list(make())
    except SystemExit as stop:
        if stop.code in (130, 143):
            print(f"{name}: stopped; the same command of experiments.pipeline goes on", file=sys.stderr)
        raise
    made = digests(outputs)
    lost = [path for path, digest in made.items() if digest == MISSING]
    if lost:
        raise UserError(f"{name}: found no {lost[0]}, expected the stage to write it")
    stamp = {"arguments": arguments, "inputs": found, "outputs": made}
    with write_whole(file) as content:
        content.write(yaml.safe_dump(stamp, sort_keys=False, width=10**6).encode())
    return outputs


def swept(
    out: Path, name: str, script: str, grid: str, shared: Sequence[str], own: Sequence[str], inputs: Sequence[Path] = ()
) -> list[Path]:
    """The stage of a sweep: `params.yaml`, log and weights of each trial, in the order of the grid."""
    base, words = dwp_path() / f"exman-{script}", [*shlex.split(grid), "--", *shared]

    def make() -> list[Path]:
        roots = sweep.main([script, *own, "--name", f"{out.name}-{name}", *words])
        return [root / file for root in roots for file in ("params.yaml", f"{script}-logs.csv", WEIGHTS[script])]

    def put_aside(file: Path) -> None:
        """Move the run directory of a file to tmp/, where the sweep does not take it for a finished trial."""
        run = file.parent
        if run.parent != base / "runs" or not run.is_dir():
            return
        try:
            run.rename(base / "tmp" / run.name)
            (base / "index" / f"{run.name}.yaml").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{run}: cannot be moved to tmp/: {error.strerror}") from None
        print(f"{file}: not what it was; its run is moved to tmp/ and trained again", file=sys.stderr)

    return stage(out, name, [script, *words], inputs, make, put_aside)


def keep(files: Sequence[Path], folder: Path) -> list[Path]:
    """Copy files whole into `<folder>-<hash of them>`; times and places in a params.yaml do not count."""
    content = b"".join(file.read_bytes() for file in files if file.suffix != ".yaml")
    target = folder.with_name(f"{folder.name}-{hashlib.sha256(content).hexdigest()[:8]}")
    for file in files:
        with write_whole(target / file.name) as copy:
            copy.write(file.read_bytes())
    return [target / file.name for file in files]


# --- the pipeline -------------------------------------------------------------------------------------------------


def data_files(scale: Scale) -> dict[str, str]:
    """The SHA-256 of each file of the notMNIST in use, by name; other data sets are checked whenever they are read.

    Raises UserError where a data set of the scale is missing.
    """
    import utils

    words = [shlex.split(s.shared) for s in (*scale.nets.values(), *scale.bnns.values())]
    names = sorted({shared[shared.index("--data") + 1] for shared in words})
    for name in names:
        utils.load_data(name)
    files = sorted((data_root() / "not-mnist" / "MNIST" / "raw").glob("*-ubyte*")) if "not-mnist" in names else []
    return {Path(path).name: digest for path, digest in digests(files).items()}


def check_data(out: Path, found: dict[str, str]) -> None:
    """Check that the data are those that `out` was begun with. Raises UserError: trials are not known by their data."""
    stamp = out / "stages" / "data.yaml"
    if stamp.exists() and read_yaml(stamp, str(stamp)) != found:
        raise UserError(f"DATA_ROOT: found another notMNIST than {stamp} names, expected a new --out and DWP_PATH")
    with write_whole(stamp) as file:
        file.write(yaml.safe_dump(found).encode())


def figures(out: Path, stats: Sequence[str], convs: dict[int, Path], vaes: dict[int, Path]) -> list[Path]:
    """Pictures of kernels and VAEs, and a table of test ELBOs in nats per kernel; returns the files."""
    from experiments import elbo_table, plot_kernels, vae_stats

    files, text = [out / "elbo.csv"], io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kernel_dim", "test_elbo", "standard_error"])
    for k, conv in convs.items():
        kernels, vae, folder = ["--conv", str(conv)], ["--vae", str(vaes[k])], out / f"vae{k}x{k}"
        flat = read_yaml(vaes[k] / "params.yaml", str(vaes[k]))["z_dim"] == 2
        plot_kernels.main([*kernels, *(vae if flat else []), "--out", str(out)])
        vae_stats.main([*vae, "--data", str(conv), "--out", str(folder), *stats])
        ((_, elbo, error),) = elbo_table.main(["--vaes", str(vaes[k]), "--data", str(conv)])
        writer.writerow([k, elbo, error])
        files += [out / f"{kind}{k}x{k}.png" for kind in ("kernels", *(("latent",) if flat else ()))]
        files += [folder / name for name in ("reconstructions.png", "samples.png", "kl.png", "kl.csv")]
    with write_whole(files[0]) as file:
        file.write(text.getvalue().encode())
    return files


def pipeline(out: Path, scale: Scale, own: Sequence[str]) -> None:
    """All stages in order; `own` are options of the sweeps."""
    from experiments import collect, extract_kernels

    models = {}
    for name, (grid, shared) in scale.nets.items():
        files = swept(out, f"nets-{name}", "train-net.py", grid, shlex.split(shared), own)
        models[name] = [file for file in files if file.name == "model.torch"]

    def extract(k: int, sources: Sequence[Path], words: Sequence[str]) -> list[Path]:
        histogram = out / "figures" / f"norms{k}x{k}.png"
        with tempfile.TemporaryDirectory(dir=out, prefix=".kernels-") as folder:
            runs = [glob.escape(str(model.parent)) for model in sources]
            extract_kernels.main(["--runs", *runs, "--out", folder, "--figure", str(histogram), *words])
            files = [Path(folder, f"conv{k}x{k}", f"{part}.npy") for part in ("train", "test")]
            return [histogram, *keep(files, out / f"conv{k}x{k}")]

    convs, vaes, kernels = {}, {}, []
    for k, (nets, min_norm, vae) in scale.kernels.items():
        sources, words = [model for name in nets for model in models[name]], [f"--min_norm_{k}x{k}", str(min_norm)]
        make = functools.partial(extract, k, sources, words)
        inputs = [file for file in stage(out, f"kernels{k}x{k}", words, sources, make) if file.suffix == ".npy"]
        kernels += inputs
        convs[k] = inputs[0].parent
        shared = ["--kernel_dim", str(k), "--data_dir", str(convs[k]), *shlex.split(vae)]
        trained = swept(out, f"train-vae{k}x{k}", "train-vae.py", "--seed 42", shared, own, inputs)
        files = [file for file in trained if file.name in VAE_FILES]
        make = functools.partial(keep, files, out / f"vae{k}x{k}")
        copies = stage(out, f"vae{k}x{k}", VAE_FILES, files, make)
        vaes[k] = copies[0].parent

    results = []
    places = {f"vae{k}x{k}": str(vae) for k, vae in vaes.items()}
    priors = [vae / name for vae in vaes.values() for name in VAE_FILES]
    for name, (grid, shared) in scale.bnns.items():
        words = [word.format(**places) for word in shlex.split(shared)]
        results += swept(out, f"bnns-{name}", "train-bnn.py", grid, words, own, priors)

    stats = shlex.split(scale.stats)
    stage(out, "figures", stats, [*priors, *kernels], lambda: figures(out / "figures", stats, convs, vaes))
    roots = list(dict.fromkeys(str(file.parent) for file in results))
    words = ["--by", *scale.by.split(), "--html", "--out", str(out / "results")]
    names = ("runs.csv", "runs.parquet", "groups.csv", "groups.parquet", "page.html")

    def tables() -> list[Path]:
        collect.main([*roots, *words])
        return [out / "results" / name for name in names]

    stage(out, "results", words, results, tables)


@command
def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    mine, own = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = Parser(__doc__)
    parser.add_argument("--scale", choices=tuple(SCALES), required=True, help="which arguments the stages get")
    parser.add_argument(
        "--out", type=Path, help="folder for all but the runs; $DWP_PATH/pipeline/<scale> where not given"
    )
    args = parser.parse_args(mine)
    asked = sweep.parse(["train-net.py", *own])
    if asked.options or asked.shared or asked.grid or asked.name or asked.status or asked.dry_run:
        raise UserError(f"--: found {shlex.join(own)}, expected --cpus, --gpus, --retries or --address of the sweeps")
    require_packages("pipeline", "ray", "pandas", "pyarrow")
    scale, out = SCALES[args.scale], (args.out or dwp_path() / "pipeline" / args.scale).absolute()
    data = data_files(scale)
    lock = FileLock(out / ".lock", timeout=0)
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = lock.acquire()
    except Timeout:
        raise UserError(f"--out: {out}: found a pipeline that runs there, expected none") from None
    except OSError as error:
        raise UserError(f"--out: {out}: {error.strerror}, expected a folder to write into") from None
    with held:
        check_data(out, data)
        pipeline(out, scale, own)
    print(f"all of it is in {out}: figures/, results/page.html")


if __name__ == "__main__":
    main()
