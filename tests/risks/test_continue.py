"""A run continues in another folder, with moved inputs, on another device; other inputs are refused."""

import os
import shutil
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml

from runs.checkpoint import find_checkpoints, load_file, restore, training_state
from runs.errors import one_line_errors
from runs.files import read_yaml
from runs.log import Log, csv_text, read_rows
from runs.loop import Run
from tests.conftest import SMALL, assert_same_end, start_script, until, without_times, write_vae


@pytest.fixture
def stopped(script, small_run, stop_at, capsys):
    """`stopped("bnn-dwp")`: the directories of a whole run and of one stopped in its third step, and the script."""

    def make(name: str):
        file, argv = small_run(name)
        whole = script(file).main(argv).root
        stop_at(3, signal.SIGTERM)
        with pytest.raises(SystemExit):
            script(file).main(argv)
        (root,) = (p for p in whole.parent.iterdir() if p != whole)
        capsys.readouterr()
        return whole, root, script(file)

    return make


@pytest.mark.parametrize("name, kind", [("bnn-dwp", "vae_list"), ("vae", "data_dir"), ("net", "data")])
def test_inputs_and_run_have_moved(name, kind, stopped, sandbox, monkeypatch, capsys):
    """The command is given in another folder with relative paths; the run's own name is the new one."""
    whole, root, module = stopped(name)
    moved = sandbox / "moved to" / "here"
    moved.mkdir(parents=True)
    old = read_yaml(root / "params.yaml").get(kind)
    if kind == "data":
        shutil.move(sandbox / "data", moved / "data")
        monkeypatch.setenv("DATA_ROOT", str(moved / "data"))
        words = []
    else:
        paths = old if isinstance(old, list) else [old]
        words = [f"--{kind}", *[os.path.relpath(shutil.move(path, moved), moved) for path in paths]]
    shutil.move(root, moved / "run")
    monkeypatch.chdir(moved)
    module.main(["--continue", "run", *words, "--name", "moved"])
    err = capsys.readouterr().err
    assert "overridden: " in err and "name moved (before: )" in err and (kind == "data" or f"{kind} " in err)
    params = read_yaml(moved / "run" / "params.yaml")
    assert params["name"] == "moved" and (kind == "data" or str(moved) in str(params[kind]))
    edited = params | {"name": "", kind: old}
    (moved / "run" / "params.yaml").write_text(yaml.safe_dump(edited, sort_keys=False))
    assert_same_end(whole, moved / "run")


def test_a_vae_that_was_trained_again_in_place(stopped, refusal, vae_folder, capsys):
    _, root, module = stopped("bnn-dwp")
    folders = read_yaml(root / "params.yaml")["vae_list"]
    torch.manual_seed(9)
    other = write_vae(Path(folders[0]).with_name("other"), 7, 2, 4)
    assert "--vae_list" in refusal("train-bnn.py", ["--continue", str(root), "--vae_list", other, folders[1]])
    shutil.copy(f"{other}/vae_params.torch", folders[0])
    assert "found content of SHA-256" in refusal("train-bnn.py", ["--continue", str(root)])
    # A fixed variance is a number in params.yaml, not in the state dict.
    vae_folder(7)
    file = Path(folders[0], "params.yaml")
    file.write_text(yaml.safe_dump(read_yaml(file) | {"var": 0.5}))
    assert "--vae_list" in refusal("train-bnn.py", ["--continue", str(root)])
    vae_folder(7)
    module.main(["--continue", str(root)])


def test_another_data_set_under_the_same_name(stopped, refusal, small_not_mnist):
    _, root, module = stopped("net")
    file = small_not_mnist / "train-images-idx3-ubyte"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    err = refusal("train-net.py", ["--continue", str(root)])
    assert "--data not-mnist: found content of SHA-256" in err
    file.write_bytes(content)
    module.main(["--continue", str(root)])


def test_a_run_of_another_device(stopped, refusal, monkeypatch):
    """A run that began on a GPU continues on the CPU, and the other way round with the GPUs that there are."""
    whole, root, module = stopped("net")
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("device: cpu\n", "device: cuda\n", 1))
    if not torch.cuda.is_available():
        assert "--device: found cuda, expected one of cpu" in refusal("train-net.py", ["--continue", str(root)])
    run = module.main(["--continue", str(root), "--device", "cpu"])
    assert_same_end(whole, root)
    state = load_file(root / "checkpoint.torch")
    state["random"] |= {"cuda": [torch.get_rng_state()] * 3, "mps": None}
    given = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.extend)
    monkeypatch.setattr(torch.mps, "set_rng_state", given.append)
    state["order"] = None
    for device in ("cuda", "mps"):
        restore(state, run.tracked, torch.device(device), "x")
    assert len(given) == 2
    assert training_state(run.tracked)["states"].keys() == state["states"].keys()


def test_what_the_refusal_names(stopped, refusal, script, capsys):
    _, root, module = stopped("net")
    argv = ["--continue", str(root)]
    assert f"start a run with --resume {root}" in refusal("train-net.py", [*argv, "--epochs", "60"])
    assert "--tmp: found True" in refusal("train-net.py", [*argv, "--tmp"])
    assert "--resume: found" in refusal("train-net.py", [*argv, "--resume", str(root)])
    module.main([*argv, "--checkpoint_freq", "2", "--tensorboard", "0"])
    assert read_yaml(root / "params.yaml")["checkpoint_freq"] == 2
    capsys.readouterr()
    module.main(argv)
    assert "finished: all 6 epochs are done" in capsys.readouterr().out
    # A run of older code, whose inputs are unknown: as it is, it continues.
    params = read_yaml(root / "params.yaml")
    del params["inputs"]
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    module.main(argv)
    assert "--filters_list" in refusal("train-net.py", [*argv, "--filters_list", str(root)])
    capsys.readouterr()
    (root / "params.yaml").write_text(
        yaml.safe_dump(params | {"environment": params["environment"] | {"torch": "1.0"}})
    )
    module.main(argv)
    assert f"torch {torch.__version__} (before: 1.0)" in capsys.readouterr().err
    (root / "params.yaml").write_text(yaml.safe_dump(params | {"environment": "x"}))
    assert "found a run of an unknown script" in refusal("train-net.py", argv)


def test_a_vae_with_more_epochs_names_its_warm_start(stopped, refusal):
    _, root, _ = stopped("vae")
    err = refusal("train-vae.py", ["--continue", str(root), "--num_epochs", "60"])
    assert f"--resume_vae {root}/vae_params.torch" in err


# --- folders that cannot be used, or go away --------------------------------------------------------------------------


@pytest.fixture
def stopped_late(script, small_run, stop_at):
    """`stopped_late("bnn-dwp", more)`: as `stopped`, with more arguments, and stopped in the seventh step."""

    def make(name: str, *more: str):
        file, argv = small_run(name)
        whole = script(file).main([*argv, *more]).root
        stop_at(7, signal.SIGTERM)
        with pytest.raises(SystemExit):
            script(file).main([*argv, *more])
        (root,) = (p for p in whole.parent.iterdir() if p != whole)
        return whole, root, script(file)

    return make


def test_a_log_from_before_some_columns(stopped_late):
    """The continued run keeps the columns of its log."""
    whole, root, module = stopped_late("bnn-dwp")
    file, new = root / "train-bnn.py-logs.csv", ("det/nll", "draws/acc", "features.conv1/dev_to_mean")
    rows = [{name: value for name, value in row.items() if name not in new} for row in read_rows(file)]
    file.write_text(csv_text(rows))
    module.main(["--continue", str(root)])
    expected = read_rows(whole / file.name)
    assert 0 < len(rows) < len(expected)
    for row in expected:
        for name in new:
            del row[name]
    assert without_times(read_rows(file)) == without_times(expected)


def test_a_vae_from_before_the_schedule_had_an_option(stopped_late):
    """It began with the linear fall, which is not the option's default."""
    whole, root, module = stopped_late("vae", "--lr_schedule", "linear")
    for folder in (whole, root):
        params = read_yaml(folder / "params.yaml")
        del params["lr_schedule"]
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    module.main(["--continue", str(root)])
    assert_same_end(whole, root)
    assert module.parse(["--config", str(root / "params.yaml")]).lr_schedule == "linear"


@pytest.mark.parametrize("kind", ["read-only", "file", "no links"])
def test_an_index_folder_without_links(kind, script, sandbox, monkeypatch, capsys):
    index = sandbox / "logs" / "exman-train-net.py" / "index"
    index.parent.mkdir(parents=True)
    if kind == "file":
        index.write_text("")
    elif kind == "no links":
        monkeypatch.setattr(os, "symlink", mock.Mock(side_effect=PermissionError(1, "no links here")))
    elif os.geteuid():
        index.mkdir(mode=0o555)
    elif os.path.isdir("/proc"):
        index.symlink_to("/proc")  # a folder that even root cannot write to
    else:
        pytest.skip("root can write to every folder here")
    root = script("train-net.py").main(SMALL).root
    assert not capsys.readouterr().err and [root] == list((index.parent / "runs").iterdir())
    assert read_yaml(root / "state.yaml")["state"] == "finished"
    assert kind == "read-only" or not list(index.glob("*"))


@pytest.mark.parametrize("move", [True, False])
def test_a_run_directory_that_goes_away(move, sandbox):
    process = start_script("train-net.py", [*SMALL, "--epochs", "100000", "--checkpoint_freq", "1"])
    checkpoint = until(lambda: next(sandbox.glob("logs/*/runs/*/checkpoint-before.torch"), None), process)
    root = checkpoint.parent
    root.rename(sandbox / "away")
    if not move:
        shutil.rmtree(sandbox / "away")
    _, err = process.communicate()
    assert process.returncode == 2 and len(err.splitlines()) == 1 and str(root) in err
    assert not root.exists(), "a folder with a part of a run"


@pytest.mark.parametrize("method", ["append", "sync"])
def test_a_run_directory_that_goes_away_between_two_writes(method, script, sandbox, monkeypatch, capsys):
    """After the row of a log, before the weights are written; and before a checkpoint is."""
    original = getattr(Log, method)

    def followed_by_a_move(log, *row):
        original(log, *row)
        log.root.rename(sandbox / "away")

    monkeypatch.setattr(Log, method, followed_by_a_move)
    with pytest.raises(SystemExit) as stop:
        script("train-net.py").main(SMALL)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and "No such file or directory" in err
    assert not list(sandbox.glob("logs/*/runs/*")), "a folder with a part of a run"


def test_out_of_memory(refusal):
    assert "out of memory" in refusal("train-net.py", [*SMALL, "--hid_dim", "4000000", "4000000"])


@pytest.mark.parametrize(
    "error, known",
    [
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_memory_that_others_than_torch_ask_for(error, known, capsys):
    @one_line_errors
    def main(argv):
        raise error

    with pytest.raises(SystemExit if known else RuntimeError) as stop:
        main([])
    if known:
        assert stop.value.code == 2 and "error: out of memory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["net", "bnn-dwp", "vae"])
def test_a_resumed_run_that_ends_before_its_first_checkpoint(name, script, small_run, monkeypatch):
    """Continued, it starts from the weights of `--resume`, as a run that was never stopped."""
    file, argv = small_run(name)
    first = script(file).main([*argv, "--seed", "7"]).root
    words = ["--resume", first]
    if name == "vae":
        words = ["--resume_vae", first / "vae_params.torch", "--resume_opt", first / "opt_params.torch"]
    argv = [*argv, *map(str, words)]
    whole = script(file).main(argv).root
    with monkeypatch.context() as context, pytest.raises(SystemExit):
        context.setattr(Run, "epochs", mock.Mock(side_effect=KeyboardInterrupt))
        script(file).main(argv)
    (root,) = (folder for folder in whole.parent.iterdir() if folder not in (first, whole))
    assert not find_checkpoints(root) and find_checkpoints(whole)
    script(file).main(["--continue", str(root)])
    assert_same_end(whole, root)


def test_a_flow_on_one_kernel(refusal, tmp_path):
    np.save(tmp_path / "one.npy", np.zeros((1, 1, 5, 5), np.float32))
    argv = ["--kernel_dim", "5", "--kind", "flow", "--train", str(tmp_path / "one.npy")]
    assert "--train: found 1 kernel, expected at least 2" in refusal("train-vae.py", [*argv, "--test", argv[-1]])
