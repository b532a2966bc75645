"""What trials learn from is checked before one of them runs: it is there, and has not changed since earlier ones."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from runs.directory import ROOT
from runs.errors import UserError
from runs.files import read_yaml, write_yaml
from sweeps import cluster, inputs, trials
from sweeps.__main__ import main
from sweeps.trials import find_script, line_trials, make_trial
from tests.conftest import SMALL, network_argv


@pytest.mark.parametrize("name", ["net", "bnn", "image-vae"])
def test_images_that_have_changed(name, script, small_run, small_not_mnist, monkeypatch, capsys):
    file, argv = small_run(name)
    root = script(file).main(argv).root
    trial = make_trial(find_script(file), argv, "")
    trial.write_record({"state": "finished", "root": str(root), "attempts": 1, "error": ""})
    monkeypatch.setattr(cluster, "connected", None)  # nothing is trained
    assert main([file, "--", *argv]) == cluster.run_lines("x", file, [shlex.join(argv)], None, "") == [root]
    labels = small_not_mnist / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="its --data has changed since this run"):
        cluster.run_lines("x", file, [shlex.join(argv)], None, "")
    with pytest.raises(SystemExit) as stop:
        main([file, "--", *argv])
    assert stop.value.code == 2 and f"error: {root}: its --data has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, change, expected",
    [
        ("net", ["--num_examples", "9"], "--num_examples: found 9, expected 10 (one per class) to "),
        ("net", ["--data", "{}"], "--data {}: No such file or directory"),
        (
            "bnn",
            ["--init_list", "xavier", "vae", "--vae_list", "{}", "{}"],
            "--vae_list entry 2 {}/params.yaml: No such file",
        ),
        ("vae", ["--data_dir", "{}"], "--train {}/train.npy: No such file or directory"),
        ("image-vae", ["--data", "{}"], "--data {}: No such file or directory"),
    ],
)
def test_what_is_missing_for_all(name, change, expected, small_run, small_not_mnist, sandbox, monkeypatch, capsys):
    """It ends the command at once, in the words of the trial."""
    file, argv = small_run(name)
    monkeypatch.setattr(cluster, "connected", None)
    missing = str(sandbox / ("none.npz" if "--data" in change else "none"))
    with pytest.raises(SystemExit) as stop:
        main([file, "--seed", "0..9", "--", *argv, *(word.format(missing) for word in change)])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and f"error: {expected.format(missing)}" in line
    assert not (sandbox / "logs" / "sweeps").exists()


def test_one_of_the_trials_that_have_not_begun(small_run, monkeypatch):
    """The first is loaded, and no other, as that takes time."""
    loaded = []
    monkeypatch.setattr(inputs, "check_inputs", lambda runs: loaded.extend(args.seed for _, args in runs))
    file, argv = small_run("net")
    found = line_trials(file, [shlex.join([*argv, "--seed", str(seed)]) for seed in range(4)])
    root = found[2].base / "runs" / "x"
    root.mkdir(parents=True)
    (root / "params.yaml").touch()
    found[2].write_record({"state": "interrupted", "root": str(root), "attempts": 1, "error": ""})
    inputs.check_trials([(trial, trial.record()) for trial in found])
    assert loaded == [2, 0]


@pytest.mark.parametrize("prior", ["vae", "gauss", "flow"])
def test_a_run_with_sources_that_have_changed(prior, script, small_inputs):
    """A finished trial is not taken if the VAEs, kernels or flows of its paths are not those of its run."""
    run = script("train-bnn.py").main([*network_argv(small_inputs, "fconv", "bayes", "vae"), "--prior", prior])
    root = run.root
    inputs.check_inputs([(root, run.args)])
    params = read_yaml(root / "params.yaml")
    option = {"vae": "vae_list", "gauss": "filters_list", "flow": "flow_list"}[prior]
    params["inputs"][option] = "0" * 64
    write_yaml(root / "params.yaml", params)
    with pytest.raises(UserError, match=f"its --{option} has changed since this run"):
        inputs.check_inputs([(root, run.args)])


def test_weights_that_have_changed(script, sandbox):
    """A trial is not taken if the file of `--pretrained` has other weights than its run began with."""
    source = script("train-net.py").main(SMALL).root / "model.torch"
    run = script("train-net.py").main([*SMALL, "--init_list", "pretrained", "--pretrained", str(source)])
    inputs.check_inputs([(run.root, run.args)])
    state = torch.load(source, weights_only=True)
    state["classifier.bias"] += 1
    torch.save(state, source)
    with pytest.raises(UserError, match="its --pretrained has changed since this run"):
        inputs.check_inputs([(run.root, run.args)])


@pytest.mark.parametrize("options", ["--kind flow --transforms 1", "--z_dim 2 --norm 0.5"])
def test_kernels_that_have_changed_since_they_were_learnt(options, script, small_inputs, tmp_path):
    np.save(tmp_path / "train.npy", np.load(small_inputs / "filters5.npy"))
    np.save(tmp_path / "test.npy", np.load(small_inputs / "filters5.npy"))
    words = f"{options} --kernel_dim 5 --hidden_dim 4 --num_epochs 1 --data_dir {tmp_path}".split()
    run = script("train-vae.py").main(words)
    inputs.check_inputs([(run.root, run.args)])
    np.save(tmp_path / "train.npy", 1 - np.load(small_inputs / "filters5.npy"))
    with pytest.raises(UserError, match="its --train has changed since this run"):
        inputs.check_inputs([(run.root, run.args)])


@pytest.mark.parametrize("moved", ["ROOT", "DWP_PATH"])
def test_a_project_or_its_runs_that_moved(moved, script, small_inputs, tmp_path, monkeypatch):
    """Finished trials are found again, and their VAEs are compared with those in the moved folder."""
    old, new = tmp_path / "old", tmp_path / "new"

    def moved_to(folder):
        monkeypatch.setenv("DWP_PATH", str(folder if moved == "DWP_PATH" else tmp_path / "logs"))
        if moved == "ROOT":
            monkeypatch.setattr(trials, "ROOT", folder)
        argv = network_argv(small_inputs, "fconv", "bayes", "vae")
        argv = [f"{folder}/{Path(word).name}" if word.startswith(f"{small_inputs}/vae") else word for word in argv]
        return [*argv, "--prior", "vae", "--ens", "1"]

    monkeypatch.setattr(cluster, "connected", None)  # nothing is trained
    old.mkdir()
    (old / "train-bnn.py").symlink_to(ROOT / "train-bnn.py")
    for k in (7, 5):
        shutil.copytree(small_inputs / f"vae{k}", old / f"vae{k}")
    argv = moved_to(old)
    root = script("train-bnn.py").main(argv).root
    path = find_script("train-bnn.py")
    make_trial(path, argv, "").write_record({"state": "finished", "root": str(root), "attempts": 1, "error": ""})
    old.rename(new)
    argv = moved_to(new)
    root = Path(str(root).replace(str(old), str(new)))
    assert cluster.run_lines("x", "train-bnn.py", [shlex.join(argv)], None, "") == [root]
