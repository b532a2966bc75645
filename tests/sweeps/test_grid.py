"""The trials of a grid, and the files that name the options and the trials of a sweep."""

from pathlib import Path

import pytest

from runs.directory import ROOT
from sweeps.__main__ import main
from sweeps.grid import grid_file, make_trials, read_sweep, split_options, values_of, write_sweep
from sweeps.trials import Trial, find_script

GRIDS = [
    (["--seed", "3..5"], ["--seed 3", "--seed 4", "--seed 5"]),
    (["--seed", "0..1", "7"], ["--seed 0", "--seed 1", "--seed 7"]),
    (["--seed=4..4"], ["--seed 4"]),
    (["--lr", "1e-3", "0.1", "--seed", "1..2"], [f"--lr {a} --seed {b}" for a in ("1e-3", "0.1") for b in (1, 2)]),
    (["--hid_dim", "3 4", "5 6"], ["--hid_dim 3 4", "--hid_dim 5 6"]),
    (["--milestones", "", "2 3"], ["--milestones", "--milestones 2 3"]),
    ([], [""]),
]


@pytest.mark.parametrize("words, labels", GRIDS)
def test_the_grid(words, labels, sandbox):
    first, options = split_options(words)
    found = make_trials(str(ROOT / "train-net.py"), options, ["--epochs", "2"])
    assert not first and [trial.label for trial in found] == labels
    assert [trial.argv for trial in found] == [("--epochs", "2", *label.split()) for label in labels]
    assert len({trial.key for trial in found}) == len(labels)


def test_the_grid_in_a_file(sandbox, capsys):
    file = sandbox / "grid.yaml"
    file.write_text("seed: 0..1\nhid_dim: [3 4, 5 6]\nlr: 1e-3\n")
    main(["train-net.py", "--grid", str(file), "--bs", "8", "16", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    seeds = [f"--seed {s} --hid_dim {h} --lr 1e-3 --bs {b}" for s in (0, 1) for h in ("3 4", "5 6") for b in (8, 16)]
    assert [line.split("  waiting")[0].strip() for line in lines[2:-1]] == seeds
    assert lines[-1] == "8 trials: 8 waiting"
    assert not (sandbox / "logs").exists()


def test_words_of_a_grid_file_are_those_of_a_command_line(sandbox):
    file = sandbox / "grid.yaml"
    file.write_text(
        "prior: no\nclassifier_prior: [none, sn]\nprior_list: [sn no, no no]\nlr: 1e-3\nlogvarinit: [-1e1]\n"
    )
    found = dict(grid_file(str(file)))
    assert found["--prior"] == ["no"] and found["--classifier_prior"] == ["none", "sn"]
    assert found["--prior_list"] == ["sn no", "no no"] and found["--lr"] == ["1e-3"]
    trials = make_trials(str(ROOT / "train-bnn.py"), list(found.items()), [])
    words = ["--prior", "no", "--classifier_prior", "none", "--prior_list", "sn", "no", "--lr", "1e-3"]
    assert trials[0].argv == (*words, "--logvarinit", "-1e1")


@pytest.mark.parametrize("word, value", [("on", "1"), ("yes", "1"), ("true", "1"), ("off", "0"), ("no", "0")])
def test_a_switch_in_a_grid_file(sandbox, monkeypatch, word, value):
    """A switch that is spelled as YAML spells it is the trial that 0 or 1 identifies."""
    monkeypatch.chdir(sandbox)
    (sandbox / "grid.yaml").write_text(f"aug: {word}\n")
    [trial] = make_trials(str(ROOT / "train-net.py"), grid_file("grid.yaml"), [])
    [same] = make_trials(str(ROOT / "train-net.py"), [("--aug", [value])], [])
    assert trial.key == same.key


def test_paths_with_a_space(sandbox, monkeypatch):
    monkeypatch.chdir(sandbox)
    (sandbox / "my vaes" / "7").mkdir(parents=True)
    assert values_of("--x", ["my vaes/7", "'my vaes/7' vae5"]) == [["my vaes/7"], ["my vaes/7", "vae5"]]
    assert values_of("--x", ["no such/7"]) == [["no", "such/7"]]


@pytest.mark.parametrize("text", ["", "script: 3\n", "script: x\ncwd: y\nshared: '\"'\ntrials: {a: b}\n"])
def test_a_damaged_sweep(sandbox, capsys, text):
    (sandbox / "logs" / "sweeps" / "x").mkdir(parents=True)
    (sandbox / "logs" / "sweeps" / "x" / "sweep.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["--status"])
    assert stop.value.code == 2 and "sweeps/x/sweep.yaml" in capsys.readouterr().err


def test_a_sweep_of_many_long_labels(sandbox):
    """Its sweep.yaml is larger than other YAML files may be."""
    labels = [f"--name {str(i) * 600_000}" for i in range(2)]
    trials = [
        Trial(find_script("train-net.py"), ("--epochs", "1", *label.split()), label, key, Path(), "/")
        for key, label in zip("ab", labels, strict=True)
    ]
    write_sweep("long", trials)
    assert [(trial.label, trial.argv) for trial in read_sweep(sandbox / "logs" / "sweeps" / "long")] == [
        (trial.label, trial.argv) for trial in trials
    ]
