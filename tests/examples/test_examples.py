"""The examples run, on small images and for a few steps."""

import subprocess
import sys

import torch

from runs.directory import ROOT
from tests.conftest import COLORS


def test_own_network(color_folder, tmp_path):
    """It learns three colors, prints its predictions of the test images, and writes a state dict."""
    (color_folder / ".cache").rmdir()
    source = (ROOT / "examples" / "own_network.py").read_text()
    changed = source.replace("SIDE, EPOCHS, KL_WEIGHT = 64, 20,", "SIDE, EPOCHS, KL_WEIGHT = 32, 3,")
    changed = changed.replace("Path(__file__).resolve().parent.parent", f"Path({str(ROOT)!r})").replace(
        "samples=20", "samples=2"
    )
    assert source.count("SIDE, EPOCHS") == 1 and changed.count("samples=2)") == 1
    done = subprocess.run(
        [sys.executable, "-c", changed, str(color_folder)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *epochs, last = done.stdout.splitlines()[:3], done.stdout.splitlines()[-1]
    assert (
        epochs[0][2].startswith("epoch 3: loss ")
        and last.startswith("test accuracy ")
        and last.endswith(" on 6 images")
    )
    assert sum(line.startswith(tuple(f"{name}: " for name in COLORS)) for line in done.stdout.splitlines()) == 6
    state = torch.load(tmp_path / "own_network.torch", weights_only=True)
    assert {"conv1.mean.weight", "conv1.var.weight", "fc.weight"} <= set(state)
