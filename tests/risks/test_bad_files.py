"""Files that are damaged or hold something else: refused in one line that names them, and nothing is left."""

import os

import numpy as np
import pytest
import torch
import yaml

from data.idx import idx_bytes
from experiments import extract_kernels
from tests.conftest import SMALL


def bad_kernels():
    good = np.zeros((10, 1, 5, 5), np.float32)
    yield "nan", np.where(good == 0, np.nan, good), "not finite"
    yield "rank", good[:, 0], "(10, 5, 5)"
    yield "size", np.zeros((10, 1, 7, 7), np.float32), "(10, 1, 7, 7)"
    yield "kind", good.astype(np.int64), "int64"
    yield "empty", good[:0], "(0, 1, 5, 5)"
    yield "large", good.astype(np.float64) + 1e300, "not finite in float32"
    yield "object", np.array([{}], dtype=object), "not a plain npy"


@pytest.mark.parametrize("what, array, expected", list(bad_kernels()), ids=lambda value: str(value)[:8])
def test_bad_kernels_are_refused(script, sandbox, capsys, what, array, expected):
    np.save(sandbox / "x.npy", array, allow_pickle=True)
    with pytest.raises(SystemExit):
        script("train-vae.py").main(["--kernel_dim", "5", "--train", str(sandbox / "x.npy"), "--test", "x"])
    assert expected in capsys.readouterr().err


HEADLESS_NPY = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': "


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", HEADLESS_NPY], ids=["empty", "zip", "truncated"])
def test_damaged_files_are_refused(script, sandbox, capsys, vae_folder, content):
    folder = vae_folder(7)
    for argv, file in (
        (["train-vae.py", "--kernel_dim", "5", "--train", "{}", "--test", "x"], sandbox / "x.npy"),
        (["train-bnn.py", *SMALL, "--init_list", "vae", "--vae_list", folder], sandbox / "vae7x7" / "vae_params.torch"),
        (["train-bnn.py", *SMALL, "--init_list", "pretrained", "--pretrained", "{}"], sandbox / "model.torch"),
        (["train-bnn.py", "--config", "{}"], sandbox / "params.yaml"),
    ):
        file.write_bytes(content)
        with pytest.raises(SystemExit) as stop:
            script(argv[0]).main([word.format(file) for word in argv[1:]])
        err = capsys.readouterr().err
        assert stop.value.code == 2 and file.name in err and len(err.splitlines()) == 1
    assert not (sandbox / "logs").exists()


def test_states_of_other_networks_are_refused(script, sandbox, capsys):
    run = script("train-net.py").main([*SMALL, "--epochs", "1"])
    model = torch.load(run.root / "model.torch", weights_only=True)
    states = {
        "shape": {**model, "features.conv2.weight": torch.zeros(4, 3, 3, 3)},
        "missing": {name: value for name, value in model.items() if name != "classifier.bias"},
        "dense tensors": {**model, "classifier.bias": 3},
        "names": {**model, 5: torch.zeros(1)},
        "not finite": {**model, "classifier.bias": torch.full((10,), torch.nan)},
    }
    pretrained = sandbox / "state.torch"
    for expected, state in states.items():
        torch.save(state, pretrained)
        with pytest.raises(SystemExit):
            script("train-net.py").main([*SMALL, "--init_list", "pretrained", "--pretrained", str(pretrained)])
        assert expected in capsys.readouterr().err
    torch.save(states["not finite"], run.root / "model.torch")
    with pytest.raises(SystemExit):
        extract_kernels.main(["--runs", str(run.root), "--out", str(sandbox / "out"), "--min_norm_7x7", "0"])
    assert "not finite" in capsys.readouterr().err and not (sandbox / "out").exists()

    torch.save(model, run.root / "model.torch")
    opt = torch.load(run.root / "opt.torch", weights_only=True)
    opt["state"][0]["exp_avg"] = torch.zeros(2, 1, 7, 7)
    torch.save(opt, run.root / "opt.torch")
    with pytest.raises(SystemExit):
        script("train-net.py").main([*SMALL, "--resume", str(run.root)])
    assert "opt.torch" in capsys.readouterr().err
    assert len(list(run.root.parent.iterdir())) == 1


def test_images_of_another_size_are_refused(script, sandbox, capsys):
    raw = sandbox / "data" / "not-mnist" / "MNIST" / "raw"
    (raw / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((60, 32, 32))))
    with pytest.raises(SystemExit):
        script("train-net.py").main(SMALL)
    assert "(1, 28, 28)" in capsys.readouterr().err and not (sandbox / "logs").exists()


def test_a_vae_of_the_wrong_size_or_that_runs_code_is_refused(script, sandbox, capsys, vae_folder):
    small, large = vae_folder(5), vae_folder(7)
    with pytest.raises(SystemExit):
        script("train-bnn.py").main([*SMALL, "--vae_list", small, large, "--prior", "vae"])
    err = capsys.readouterr().err
    assert "--vae_list entry 1 " in err and "is of 5x5 kernels, expected 7x7" in err

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(sandbox / "evil"),)

    torch.save({"x": Evil()}, sandbox / "vae5x5" / "vae_params.torch")
    with pytest.raises(SystemExit):
        script("train-bnn.py").main([*SMALL, "--vae_list", large, small, "--prior", "vae"])
    assert "cannot be loaded as data" in capsys.readouterr().err
    assert not (sandbox / "evil").exists() and not (sandbox / "logs").exists()


def test_files_of_another_script_or_run(script, sandbox, capsys):
    """`--resume` of another script's run, and of one whose network has another shape."""
    run = script("train-net.py").main([*SMALL, "--epochs", "1"])
    for argv in (["train-bnn.py", *SMALL], ["train-net.py", *SMALL, "--hid_dim", "3", "5"]):
        with pytest.raises(SystemExit):
            script(argv[0]).main([*argv[1:], "--resume", str(run.root)])
        err = capsys.readouterr().err
        assert f"--resume {run.root}/model.torch" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"z_dim": None}, "z_dim is None"),
        ({"hidden_dim": -4}, "hidden_dim is -4"),
        ({"z_dim": 10**9}, "z_dim is 1000000000"),
        ({"kernel_dim": 6}, "kernel_dim is 6"),
        ({"var": "much"}, "var"),
        ({"var": -1}, "var"),
        ({"kind": "flow"}, "found a flow, expected a vae"),
        ({"z_dim": [2]}, "z_dim is [2]"),
        ({"hidden_dim": 8}, "expected torch.float32 of shape"),
    ],
)
def test_a_vae_folder_with_senseless_params(refusal, sandbox, vae_folder, change, expected):
    folder = vae_folder(7)
    params = yaml.safe_load((sandbox / "vae7x7" / "params.yaml").read_text())
    (sandbox / "vae7x7" / "params.yaml").write_text(yaml.safe_dump({**params, **change}))
    err = refusal("train-bnn.py", [*SMALL, "--init_list", "vae", "--vae_list", folder])
    assert expected in err and "--vae_list entry 1" in err


def test_a_vae_folder_without_a_file(refusal, sandbox, vae_folder):
    folder = vae_folder(7)
    for name in ("vae_params.torch", "params.yaml"):
        (sandbox / "vae7x7" / name).unlink()
        assert name in refusal("train-bnn.py", [*SMALL, "--init_list", "vae", "--vae_list", folder])
