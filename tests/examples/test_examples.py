"""The examples run, on small images and for a few steps."""

import subprocess
import sys

import torch

from runs.directory import ROOT
from tests.conftest import COLORS


def test_own_network(color_folder, tmp_path):
    """It learns three colors, one image of which is damaged, predicts those in test/, and writes a state dict."""
    for name in COLORS:
        (tmp_path / "two" / "test" / name).mkdir(parents=True)
        for file in ("0.png", "4.webp"):
            (color_folder / name / file).rename(tmp_path / "two" / "test" / name / file)
    color_folder.rename(tmp_path / "two" / "train")
    (tmp_path / "two" / "train" / "red" / "5.png").write_bytes(b"damaged")
    source = (ROOT / "examples" / "own_network.py").read_text()
    changed = source.replace("SIDE, STEPS, KL_WEIGHT = 64, 300,", "SIDE, STEPS, KL_WEIGHT = 32, 3,").replace(
        "max(20, ", "("
    )
    changed = changed.replace("Path(__file__).resolve().parent.parent", f"Path({str(ROOT)!r})").replace(
        "samples=20", "samples=2"
    )
    assert (
        source.count("SIDE, STEPS") == 1
        and changed.count("range((-(-STEPS // batches)))") == 1
        and changed.count("samples=2)") == 1
    )
    done = subprocess.run(
        [sys.executable, "-c", changed, str(tmp_path / "two")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    epoch, last = done.stdout.splitlines()[3], done.stdout.splitlines()[-1]  # after what the images are converted to
    assert (
        epoch.startswith("epoch 3: loss ")
        and "1 images are left out, damaged or of 32-bit pixels: train/red/5.png" in done.stderr
    )
    assert last.startswith("test accuracy ") and last.endswith(" on 6 images")
    assert sum(line.startswith(tuple(f"{name}: " for name in COLORS)) for line in done.stdout.splitlines()) == 6
    state = torch.load(tmp_path / "own_network.torch", weights_only=True)
    assert {"conv1.mean.weight", "conv1.var.weight", "fc.weight"} <= set(state)


def test_own_network_without_images(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "own_network.py"), str(tmp_path)], capture_output=True, text=True
    )
    found = f"error: images {tmp_path}: found 0 folders, expected one for each of at least 2 classes"
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith(found)
