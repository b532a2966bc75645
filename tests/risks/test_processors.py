"""Processors with and without bfloat16, whatever the machine of the tests has: every command runs on both."""

import shlex

import pytest
import torch

from sweeps.scales import SCALES
from tests.conftest import SCRIPTS, without_times

RUNS = ["net", "bnn-dwp", "vae"]  # one of each script


@pytest.fixture
def processor(monkeypatch):
    """`processor(bfloat16)` lets torch report a CPU that computes in bfloat16 natively, or one that does not."""

    def pretend(bfloat16: bool) -> None:
        capabilities = {"avx512_bf16": bfloat16, "amx_bf16": False, "avx512_f": True}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    return pretend


@pytest.fixture
def trained(script, small_run):
    """`trained(name, precision)` is the log, without times, and the state dict of a small run on the CPU."""

    def train(name, precision):
        file, argv = small_run(name)
        run = script(file).main([*argv, "--device", "cpu", "--precision", precision])
        weights = "vae_params.torch" if name == "vae" else "model.torch"
        return without_times(run.rows), torch.load(run.root / weights, weights_only=True)

    return train


@pytest.mark.parametrize("bfloat16, precision", [(False, "fp32"), (True, "bf16")])
@pytest.mark.parametrize("name", RUNS)
def test_auto_is_the_precision_that_is_native(name, bfloat16, precision, processor, trained):
    processor(bfloat16)
    (rows, state), (expected_rows, expected) = (trained(name, p) for p in ("auto", precision))
    assert rows == expected_rows and state.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


@pytest.mark.parametrize("name", RUNS)
def test_bf16_is_refused_where_it_is_emulated(name, processor, small_run, refusal):
    processor(False)
    file, argv = small_run(name)
    err = refusal(file, [*argv, "--device", "cpu", "--precision", "bf16"])
    assert "--precision: found bf16, expected fp32 or auto: this cpu does not compute in bfloat16" in err


@pytest.mark.parametrize("name", RUNS)
def test_a_torch_that_reports_no_capabilities(name, monkeypatch, small_run, refusal):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    file, argv = small_run(name)
    assert "--precision" in refusal(file, [*argv, "--device", "cpu", "--precision", "bf16"])


def small_arguments():
    """(script, arguments) of every training at the scales that a laptop runs."""
    for scale in (SCALES["laptop"], SCALES["cifar"]):
        places = dict.fromkeys(("vae7x7", "vae5x5"), "x") | scale.places("mnist", 60_000)
        for name, file, grid, words in scale.stages(places):
            yield pytest.param(file, grid, words, id=name)
        for name, vae in scale.vaes.items():
            words = [*shlex.split(vae.shared), "--kernel_dim", name[0], "--data_dir", "x"]
            yield pytest.param("train-vae.py", "", words, id=f"vae-{name}")


def test_all_scripts_train_at_the_small_scales():
    assert {argument.values[0] for argument in small_arguments()} == set(SCRIPTS)


@pytest.mark.parametrize("file, grid, words", list(small_arguments()))
def test_the_small_scales_run_on_every_processor(file, grid, words, script):
    """It asks for bfloat16 only where that is native."""
    assert "bf16" not in shlex.split(grid)
    assert script(file).parse(words).precision in ("fp32", "auto")
