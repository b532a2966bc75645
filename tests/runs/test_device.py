"""The device: precision, and compilation."""

import shutil

import pytest
import torch

from runs.device import choose_device
from tests.conftest import SMALL


@pytest.mark.parametrize("name, column", [("net", "loss"), ("bnn-dwp", "train_loss"), ("vae", "train_elbo")])
def test_precision(script, small_run, monkeypatch, name, column):
    """In bfloat16 the numbers are near those of float32, and not the same."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": False}, raising=False)
    file, argv = small_run(name)
    full, half = (script(file).main([*argv, "--device", "cpu", "--precision", p]).rows[-1] for p in ("fp32", "bf16"))
    assert half[column] == pytest.approx(full[column], rel=0.02) and half[column] != full[column]


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_compile(script, sandbox):
    """The compiled step trains as the other: the same first loss, but for rounding."""
    plain, compiled = (
        script("train-net.py").main([*SMALL, "--epochs", "1", "--bs", "30", "--compile", c]) for c in ("0", "1")
    )
    for column in ("loss", "test_nll"):
        assert compiled.rows[-1][column] == pytest.approx(plain.rows[-1][column], rel=1e-4)


@pytest.mark.parametrize("name", ["net", "vae"])
def test_compile_without_a_compiler(script, sandbox, small_run, monkeypatch, refusal, name):
    def no_compiler(function):
        raise RuntimeError("no compiler\nand more lines")

    monkeypatch.setattr(torch, "compile", no_compiler)
    file, argv = small_run(name)
    err = refusal(file, [*argv, "--device", "cpu", "--compile", "1"])
    assert "--compile: found 1, expected 0: torch.compile does not work here (no compiler)" in err
    assert not (sandbox / "logs").exists()


@pytest.mark.parametrize("visible, expected", [("", "cpu"), (None, "mps")])
def test_a_sweeps_trial_without_gpus_takes_no_gpu_of_apple(visible, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert choose_device("auto").type == expected and choose_device("mps").type == "mps"
