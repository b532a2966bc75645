"""Fixtures and helpers of the tests: commands, processes, run directories, small data sets and sources of kernels."""

import contextlib
import csv
import hashlib
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import scipy.io
import sklearn.model_selection  # noqa: F401  the import draws a random number: no run of a test may be the first
import torch
import yaml
from PIL import Image

import utils
from data.idx import idx_bytes
from models.build import build_network, build_vae
from models.configs import MODELS, VAES
from models.flow import KernelFlow
from runs.checkpoint import load_file, named_leaves
from runs.directory import ROOT
from runs.loop import Run
from runs.options import Parser

PUBLISHED = Path(os.environ.get("DWP_PUBLISHED") or ROOT.parent / "shared" / "published")
SCRIPTS = ("train-net.py", "train-vae.py", "train-bnn.py")
IMAGE_VAE = "experiments/train-image-vae.py"
# A small fconv on the data set of the fixture `small_not_mnist`.
SMALL = ["--data", "not-mnist", "--hid_dim", "3", "4", "--epochs", "2", "--bs", "32", "--device", "cpu"]
COLORS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}  # classes of `color_folder`
HANG = 600.0  # seconds after which a test that waits gives up; no test depends on the speed of the machine


# --- commands ---------------------------------------------------------------------------------------------------------


def load_command(name: str) -> ModuleType:
    """The module of a command: of a script such as train-bnn.py, or a module such as sweeps.collect."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    module_name = name.replace("-", "_").replace("/", ".").removesuffix(".py")
    spec = importlib.util.spec_from_file_location(module_name, ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parser_of(name: str) -> Parser:
    """The parser that a command's `main` makes."""
    with (
        mock.patch.object(Parser, "parse_args", autospec=True, side_effect=InterruptedError) as parse_args,
        contextlib.suppress(InterruptedError),
    ):
        load_command(name).main([])
    return parse_args.call_args.args[0]


PARSERS = {name: parser_of(name) for name in SCRIPTS}


@pytest.fixture
def script():
    """`script("train-bnn.py")` is the module; its `main(argv)` is the command."""
    return load_command


@pytest.fixture
def refusal(sandbox, capsys):
    """`refusal(name, argv)` is the one line that a command ends with. It has exit code 2, and no file was made."""

    def run(name: str, argv: list[str]) -> str:
        before = set(sandbox.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            load_command(name).main(argv)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and len(err.splitlines()) == 1 and ": error: " in err, err
        assert set(sandbox.rglob("*")) == before, "a file was made"
        return err

    return run


@pytest.fixture
def font_cache():
    """Matplotlib has its list of fonts, which it makes once for a user, with a warning if that takes long."""
    import matplotlib.font_manager  # noqa: F401


HEED_HANGUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # whatever the tests were started with


def start_script(name: str, argv: list[str], before: str = "", **options) -> subprocess.Popen:
    """Start a script as a process with one thread, after the Python code `before`; `options` are those of Popen."""
    run = (
        f"sys.argv = sys.argv[1:]; sys.path.insert(0, {str(ROOT)!r}); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", f"import runpy, sys\n{before}\n{run}", str(ROOT / name), *argv],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options),
    )


def until(condition, process: subprocess.Popen | None = None):
    """Wait for the first true value of `condition()`, and return it; fail if `process` ends before."""
    end = time.monotonic() + HANG
    while not (found := condition()):
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)
    return found


@pytest.fixture
def stop_at(monkeypatch):
    """`stop_at(step, number)` sends this process a signal in the middle of that step of the next run."""
    require_finite = Run.require_finite

    def arm(step: int, number: int) -> None:
        def signalling(self, terms):
            if self.step == step:
                monkeypatch.setattr(Run, "require_finite", require_finite)
                signal.raise_signal(number)
            require_finite(self, terms)

        monkeypatch.setattr(Run, "require_finite", signalling)

    return arm


@pytest.fixture
def without_package(monkeypatch):
    """`without_package("ray")` hides an installed package from `importlib.util.find_spec`."""

    def hide(name: str) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda n, *more: None if n == name else find(n, *more))

    return hide


# --- run directories --------------------------------------------------------------------------------------------------


def read_cells(root: Path) -> list[dict[str, str]]:
    """The rows of a run's CSV log as text."""
    (file,) = root.glob("*-logs.csv")
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def read_log(root: Path) -> list[dict[str, float]]:
    """The rows of a run's CSV log as numbers."""
    return [{name: float(value) for name, value in row.items()} for row in read_cells(root)]


def without_times(rows: list[dict]) -> list[dict]:
    """Rows of a log without the one column that is a time."""
    return [{name: value for name, value in row.items() if name != "sec"} for row in rows]


def assert_same_values(path: Path, other: Path) -> None:
    """Two files that torch saved hold the same names, types, shapes and values, bit for bit."""
    leaves, others = (dict(named_leaves(load_file(file))) for file in (path, other))
    assert leaves.keys() == others.keys(), path.name
    for name, value in leaves.items():
        assert type(value) is type(others[name]), (path.name, name)
        if isinstance(value, torch.Tensor):
            assert value.dtype == others[name].dtype and torch.equal(value, others[name]), (path.name, name)
        else:
            assert value == others[name], (path.name, name)


def assert_same_end(root: Path, other: Path) -> None:
    """Two run directories hold the same files with the same values, but for times, places and numbers of runs."""
    names = [{p.name for p in folder.iterdir() if not p.name.startswith(".")} for folder in (root, other)]
    assert names[0] | {"checkpoint-before.torch"} == names[1] | {"checkpoint-before.torch"}
    files = {name for name in names[0] if name.endswith(".torch") and "before" not in name}
    assert {"checkpoint.torch"} < files
    for name in files:
        assert_same_values(root / name, other / name)
    assert without_times(read_cells(root)) == without_times(read_cells(other))
    params = [yaml.safe_load((folder / "params.yaml").read_text()) for folder in (root, other)]
    for key in ("root", "time", "id"):
        assert [p.pop(key) for p in params]
    assert params[0] == params[1]


# --- data sets and sources --------------------------------------------------------------------------------------------


@pytest.fixture
def published() -> Path:
    """The paper's kernels and VAEs (folders conv7x7, vae7x7, ...)."""
    if not PUBLISHED.is_dir():
        pytest.skip(f"the paper's artefacts are not at {PUBLISHED}; name their folder in DWP_PUBLISHED")
    return PUBLISHED


def write_idx(data_root: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    """Write the images and labels of "train" and "t10k" as the data set not-mnist, and return the files' folder."""
    raw = data_root / "not-mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, (images, labels) in parts.items():
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return raw


def write_vae(folder: Path, k: int, z_dim: int, hidden_dim: int) -> str:
    """Write an untrained VAE of k x k kernels as the folder of a run, and return the folder."""
    folder.mkdir(exist_ok=True)
    params = {"z_dim": z_dim, "hidden_dim": hidden_dim, "kernel_dim": k, "var": "train"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    torch.save(build_vae(k, z_dim, hidden_dim).state_dict(), folder / "vae_params.torch")
    assert utils.load_vae(folder).kernel_dim == k
    return str(folder)


def write_flow(folder: Path, k: int) -> str:
    """Write an untrained flow over k x k kernels as the folder of a run, and return the folder."""
    folder.mkdir(exist_ok=True)
    params = {"kind": "flow", "hidden_dim": 4, "kernel_dim": k, "transforms": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    torch.save(KernelFlow(k, 4, 1).state_dict(), folder / "flow_params.torch")
    return str(folder)


@pytest.fixture
def color_folder(tmp_path):
    """Ten images of each of three plain colors, in six formats and sizes."""
    root = tmp_path / "colors"
    for name, color in COLORS.items():
        (root / name).mkdir(parents=True)
        for i in range(10):
            image = Image.new("RGB", (40 + i, 60 - i), color)
            image.save(root / name / f"{i}.{('png', 'bmp', 'tiff', 'PNG', 'webp')[i % 5]}", lossless=True)
        (root / name / "notes.txt").write_text("no image")
    (root / ".cache").mkdir()
    return root


@pytest.fixture
def small_not_mnist(tmp_path, monkeypatch) -> Path:
    """A DATA_ROOT with a small notMNIST: 60 + 30 images whose class is where they are bright. The files' folder."""
    rng = np.random.default_rng(0)
    parts = {}
    for part, n in (("train", 60), ("t10k", 30)):
        labels = np.arange(n) % 10
        images = rng.integers(0, 60, (n, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 5] += 150
        parts[part] = (images, labels)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    return write_idx(tmp_path / "data", parts)


@pytest.fixture
def sandbox(small_not_mnist, tmp_path, monkeypatch) -> Path:
    """An empty folder, with runs under logs/ and the small notMNIST under data/."""
    monkeypatch.setenv("DWP_PATH", str(tmp_path / "logs"))
    return tmp_path


@pytest.fixture
def vae_folder(tmp_path):
    """`vae_folder(5)` is a folder with a small untrained VAE of 5x5 kernels."""

    def make(k: int, z_dim: int = 2, hidden_dim: int = 4) -> str:
        torch.manual_seed(k)
        return write_vae(tmp_path / f"vae{k}x{k}", k, z_dim, hidden_dim)

    return make


@pytest.fixture
def flow_folder(tmp_path):
    """`flow_folder(5)` is a folder with a small untrained flow over 5x5 kernels."""

    def make(k: int) -> str:
        torch.manual_seed(k)
        return write_flow(tmp_path / f"flow{k}x{k}", k)

    return make


@pytest.fixture
def kernel_folder(tmp_path):
    """`kernel_folder(5)` is a folder with train.npy and test.npy, both of the same 300 random 5x5 kernels."""

    def make(k: int, scale: float = 0.2) -> str:
        folder = tmp_path / f"conv{k}x{k}"
        folder.mkdir(exist_ok=True)
        kernels = scale * np.random.default_rng(0).standard_normal((300, 1, k, k)).astype(np.float32)
        for part in ("train", "test"):
            np.save(folder / f"{part}.npy", kernels)
        return str(folder)

    return make


# --- small runs of every kind -----------------------------------------------------------------------------------------

BNN = [*SMALL, "--ens", "2", "--num_examples", "30", "--bs", "8"]
# By name: a script, and arguments for six epochs.
SMALL_RUNS = {
    "net": ("train-net.py", [*SMALL, "--epochs", "6", "--bs", "16", "--l2", "0.001", "--aug", "1"]),
    "net-do": ("train-net.py", [*SMALL, "--epochs", "6", "--net_cfg", "vanilla-do", "--do", "0.2", "0.3"]),
    "net-steps": ("train-net.py", [*SMALL, "--epochs", "6", "--bs", "16", "--fastconv", "1", "--eval_freq", "5"]),
    "bnn": ("train-bnn.py", [*BNN, "--epochs", "6", "--eval_freq", "2", "--prior", "sn-mc", "--checkpoint_freq", "1"]),
    "bnn-dwp": ("train-bnn.py", [*BNN, "--epochs", "6", "--prior_list", "vae", "vae", "--reverse", "train"]),
    "vae": ("train-vae.py", ["--kernel_dim", "5", "--z_dim", "2", "--num_epochs", "6", "--eval_freq", "4"]),
    "flow": ("train-vae.py", ["--kernel_dim", "5", "--kind", "flow", "--num_epochs", "6"]),
    "image-vae": (IMAGE_VAE, [*SMALL, "--epochs", "6", "--init_scale", "xavier"]),
}


@pytest.fixture
def small_run(sandbox, vae_folder, kernel_folder):
    """`small_run("bnn-dwp")` is the script and the arguments of a name in `SMALL_RUNS`, with kernels and VAEs."""

    def make(name: str) -> tuple[str, list[str]]:
        script, argv = SMALL_RUNS[name]
        if script == "train-vae.py":
            argv = [*argv, "--data_dir", kernel_folder(5)]
        if "vae" in argv:
            argv = [*argv, "--vae_list", vae_folder(7), vae_folder(5)]
        return script, argv

    return make


# --- networks of every kind -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def stored_inputs(tmp_path_factory) -> Path:
    """A DATA_ROOT with a few images of both shapes, and per kernel size a VAE, a flow and kernels beside them."""
    root = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    parts = {"train": 20, "t10k": 10}
    write_idx(root, {part: (rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10) for part, n in parts.items()})
    (root / "svhn").mkdir()
    for part, n in (("train", 20), ("test", 10)):
        images = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        scipy.io.savemat(root / "svhn" / f"{part}_32x32.mat", {"X": images, "y": 1 + np.arange(n)[:, None] % 10})
    torch.manual_seed(0)
    for k in VAES:
        write_vae(root / f"vae{k}", k, 2, 2)
        write_flow(root / f"flow{k}", k)
        np.save(root / f"filters{k}.npy", 0.1 * rng.standard_normal((60, 1, k, k)).astype(np.float32))
    for model, row in MODELS.items():
        for net_cfg in row.net_cfgs:
            if not any(row.config(net_cfg).bayesian):
                net = build_network(model, net_cfg, [2, 3, 2][: len(row.kernel_sizes)], 0.015)
                torch.save(net.state_dict(), root / f"{model}-{net_cfg}.torch")
    return root


@pytest.fixture
def small_inputs(stored_inputs, tmp_path, monkeypatch) -> Path:
    """`stored_inputs` as DATA_ROOT, with the checksums of its SVHN in place of the real ones, and no runs."""
    from torchvision import datasets

    monkeypatch.setenv("DATA_ROOT", str(stored_inputs))
    monkeypatch.setenv("DWP_PATH", str(tmp_path / "logs"))
    splits = {}
    for split in ("train", "test"):
        file = stored_inputs / "svhn" / f"{split}_32x32.mat"
        splits[split] = ["https://nowhere.invalid", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)
    return stored_inputs


def network_argv(inputs: Path, model: str, net_cfg: str, init: str, epochs: int = 2) -> list[str]:
    """Arguments of a small network on the data sets of `small_inputs`, with one initialization for every conv."""
    row = MODELS[model]
    convs = len(row.kernel_sizes)
    argv = ["--data", "not-mnist" if row.image_shape[0] == 1 else "svhn", "--model", model, "--net_cfg", net_cfg]
    argv += ["--model_size", "0.015"] if row.channels else ["--hid_dim", *["2", "3", "2"][:convs]]
    argv += ["--epochs", str(epochs), "--bs", "10", "--device", "cpu"]
    argv += ["--init_list", *[init] * (1 if init == "pretrained" else convs)]
    if init == "pretrained":
        kind = next((kind for kind in ("nofc", "do") if net_cfg.endswith(f"-{kind}")), "")
        argv += ["--pretrained", str(inputs / f"{model}-vanilla{kind and f'-{kind}'}.torch")]
    for kind, suffix in (("vae", ""), ("flow", ""), ("filters", ".npy")):
        argv += [f"--{kind}_list", *(str(inputs / f"{kind}{k}{suffix}") for k in row.kernel_sizes)]
    return argv
