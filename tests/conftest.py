"""What the tests share: scripts as modules, small data sets in the true format, the published artefacts."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import utils
from data.prepare_mnist import idx_bytes
from models.flow import KernelFlow
from models.vae import VAES

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = Path(os.environ.get("DWP_PUBLISHED") or ROOT.parent / "shared" / "published")


@pytest.fixture
def published() -> Path:
    """The paper's kernels and VAEs (folders conv7x7, vae7x7, ...)."""
    if not PUBLISHED.is_dir():
        pytest.skip(f"the paper's artefacts are not at {PUBLISHED}; name their folder in DWP_PUBLISHED")
    return PUBLISHED


@pytest.fixture
def script():
    """`script("train-bnn.py")` is the module; its `main(argv)` is the command."""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name.replace("-", "_").removesuffix(".py"), ROOT / name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def sandbox(tmp_path, monkeypatch) -> Path:
    """An empty place for runs and a small notMNIST: 60 + 30 images whose class is where they are bright."""
    rng = np.random.default_rng(0)
    raw = tmp_path / "data" / "not-mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 60), ("t10k", 30)):
        labels = np.arange(n) % 10
        images = rng.integers(0, 60, (n, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 5] += 150
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("DWP_PATH", str(tmp_path / "logs"))
    return tmp_path


@pytest.fixture
def vae_folder(tmp_path):
    """`vae_folder(5)` is a folder with a small untrained VAE of 5x5 kernels."""

    def make(k: int, z_dim: int = 2, hidden_dim: int = 4) -> str:
        folder = tmp_path / f"vae{k}x{k}"
        folder.mkdir(exist_ok=True)
        params = {"z_dim": z_dim, "hidden_dim": hidden_dim, "kernel_dim": k, "var": "train"}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        torch.manual_seed(k)
        torch.save(VAES[k](z_dim, hidden_dim).state_dict(), folder / "vae_params.torch")
        assert utils.load_vae(folder).kernel_dim == k
        return str(folder)

    return make


@pytest.fixture
def flow_folder(tmp_path):
    """`flow_folder(5)` is a folder with a small untrained flow over 5x5 kernels."""

    def make(k: int) -> str:
        folder = tmp_path / f"flow{k}x{k}"
        folder.mkdir(exist_ok=True)
        params = {"kind": "flow", "hidden_dim": 4, "kernel_dim": k, "transforms": 1}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        torch.manual_seed(k)
        torch.save(KernelFlow(k, 4, 1).state_dict(), folder / "flow_params.torch")
        return str(folder)

    return make
