"""Runs that exist are not taken if what they learnt from has changed, which is found before anything is trained."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import training
from runs.directory import ROOT
from runs.errors import UserError
from runs.files import read_yaml, write_yaml
from sweeps import trials
from sweeps.trials import find_script, make_trial
from tests.conftest import network_argv


@pytest.mark.parametrize("name", ["net", "bnn", "image-vae"])
def test_images_that_have_changed(name, script, small_run, small_not_mnist, monkeypatch):
    file, argv = small_run(name)
    root = script(file).main(argv).root
    trial = make_trial(find_script(file), argv, "")
    trial.write_record({"state": "interrupted", "root": str(root), "attempts": 1, "error": ""})
    monkeypatch.setattr(training, "run_sweep", lambda name, trials, *more: ["trained"])
    line = shlex.join(argv)
    assert training.train_lines("x", file, [line], None, "") == ["trained"]
    labels = small_not_mnist / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="its --data has changed since this run"):
        training.train_lines("x", file, [line], None, "")


@pytest.mark.parametrize("prior", ["vae", "gauss", "flow"])
def test_a_run_with_sources_that_have_changed(prior, script, small_inputs):
    """A finished trial is not taken if the VAEs, kernels or flows of its paths are not those of its run."""
    run = script("train-bnn.py").main([*network_argv(small_inputs, "fconv", "bayes", "vae"), "--prior", prior])
    root = run.root
    training.check_inputs([(root, run.args)])
    params = read_yaml(root / "params.yaml")
    option = {"vae": "vae_list", "gauss": "filters_list", "flow": "flow_list"}[prior]
    params["inputs"][option] = "0" * 64
    write_yaml(root / "params.yaml", params)
    with pytest.raises(UserError, match=f"its --{option} has changed since this run"):
        training.check_inputs([(root, run.args)])


@pytest.mark.parametrize("options", ["--kind flow --transforms 1", "--z_dim 2 --norm 0.5"])
def test_kernels_that_have_changed_since_they_were_learnt(options, script, small_inputs, tmp_path):
    np.save(tmp_path / "train.npy", np.load(small_inputs / "filters5.npy"))
    np.save(tmp_path / "test.npy", np.load(small_inputs / "filters5.npy"))
    words = f"{options} --kernel_dim 5 --hidden_dim 4 --num_epochs 1 --data_dir {tmp_path}".split()
    run = script("train-vae.py").main(words)
    training.check_inputs([(run.root, run.args)])
    np.save(tmp_path / "train.npy", 1 - np.load(small_inputs / "filters5.npy"))
    with pytest.raises(UserError, match="its --train has changed since this run"):
        training.check_inputs([(run.root, run.args)])


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

    def train(name, found, *more):
        return [trial.record()["state"] for trial in found]

    monkeypatch.setattr(training, "run_sweep", train)
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
    assert training.train_lines("x", "train-bnn.py", [shlex.join(argv)], None, "") == ["finished"]
