"""Runs as tables, pages and TensorBoard's events: numbers against formulas written out here, and hostile files."""

import csv
import importlib.util

import numpy as np
import pytest

import runs

SMALL = ["--data", "not-mnist", "--hid_dim", "3", "4", "--device", "cpu", "--bs", "16"]


def read_log(root):
    (file,) = root.glob("*-logs.csv")
    with open(file) as lines:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(lines)]


@pytest.fixture
def without_package(monkeypatch):
    """`without_package("ray")`: as if it were not installed."""
    find = importlib.util.find_spec

    def hide(name):
        monkeypatch.setattr(importlib.util, "find_spec", lambda n, *more: None if n == name else find(n, *more))

    return hide


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def read_events(root):
    """By column of the log, the steps and values in a run's event files."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    # Without the repair of doubled steps that TensorBoard's own reader makes.
    events = event_accumulator.EventAccumulator(str(root), {"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected_events(root):
    rows = read_log(root)
    return {k: [(row["t"], np.float32(row[k])) for row in rows] for k in rows[0] if k != "t"}


@pytest.mark.parametrize(
    "name, options",
    [
        ("train-net.py", [*SMALL, "--epochs", "3", "--eval_freq", "2"]),
        ("train-net.py", [*SMALL, "--epochs", "2", "--fastconv", "1", "--eval_freq", "3"]),
        ("train-bnn.py", [*SMALL, "--epochs", "2", "--ens", "2"]),
        ("train-vae.py", ["--kernel_dim", "5", "--num_epochs", "2", "--data_dir", "{}"]),
    ],
)
def test_events_are_the_log(name, options, script, sandbox):
    for part in ("train", "test"):
        np.save(sandbox / f"{part}.npy", np.random.default_rng(0).standard_normal((40, 1, 5, 5)).astype(np.float32))
    run = script(name).main([*(word.format(sandbox) for word in options), "--tensorboard", "1"])
    assert read_events(run.root) == expected_events(run.root)


def test_events_after_a_continued_run(script, sandbox, monkeypatch):
    """Rows between the last checkpoint and the kill are there once."""
    argv = [*SMALL, "--epochs", "6", "--checkpoint_freq", "2", "--tensorboard", "1"]
    epochs = runs.Run.epochs

    def die(self, total):
        for epoch in epochs(self, total):
            yield epoch
            if epoch == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(runs.Run, "epochs", die)
    with pytest.raises(SystemExit):
        script("train-net.py").main(argv)
    monkeypatch.setattr(runs.Run, "epochs", epochs)
    (root,) = (sandbox / "logs" / "exman-train-net.py" / "runs").iterdir()
    assert len(read_events(root)["test_acc"]) == 5
    script("train-net.py").main(["--continue", str(root)])
    assert [row["t"] for row in read_log(root)] == [1, 2, 3, 4, 5, 6]
    assert read_events(root) == expected_events(root)
    script("train-net.py").main(["--continue", str(root)])  # of a run that is done
    assert read_events(root) == expected_events(root)
    assert len(list(root.glob("events.*"))) == 1


def test_no_events_where_not_asked_for(script, sandbox):
    run = script("train-net.py").main([*SMALL, "--epochs", "1"])
    assert not list(run.root.glob("events.*"))


def test_events_without_the_package(script, sandbox, without_package, capsys):
    without_package("tensorboard")
    with pytest.raises(SystemExit) as stop:
        script("train-net.py").main([*SMALL, "--tensorboard", "1"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and not (sandbox / "logs").exists()
    assert "--tensorboard: found no package tensorboard" in err and "pip install -r requirements-sweep.txt" in err
    script("train-net.py").main([*SMALL, "--epochs", "1"])
