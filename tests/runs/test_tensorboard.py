"""TensorBoard's events are the rows of the log."""

from pathlib import Path

import numpy as np
import pytest

from runs.loop import Run
from tests.conftest import SMALL, read_log


def read_events(root: Path) -> dict[str, list[tuple[int, float]]]:
    """The steps and values in a run's event files, by column of the log."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    # Without the repair of doubled steps that TensorBoard's own reader makes.
    events = event_accumulator.EventAccumulator(str(root), {"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected_events(root: Path) -> dict[str, list[tuple[float, np.float32]]]:
    """The steps and values of each column of a run's log, in the precision of an event file."""
    rows = read_log(root)
    return {k: [(row["t"], np.float32(row[k])) for row in rows] for k in rows[0] if k != "t"}


@pytest.mark.parametrize(
    "name, options",
    [
        ("train-net.py", [*SMALL, "--epochs", "3", "--eval_freq", "2"]),
        ("train-net.py", [*SMALL, "--fastconv", "1", "--eval_freq", "3"]),
        ("train-bnn.py", [*SMALL, "--ens", "2"]),
        ("train-vae.py", ["--kernel_dim", "5", "--num_epochs", "2", "--data_dir", "{}"]),
    ],
)
def test_events_are_the_log(name, options, script, sandbox, kernel_folder):
    folder = kernel_folder(5)
    run = script(name).main([*(word.format(folder) for word in options), "--tensorboard", "1"])
    assert read_events(run.root) == expected_events(run.root)


def test_events_after_a_continued_run(script, sandbox, monkeypatch):
    """Rows between the last checkpoint and the end of a killed process are in the events once."""
    argv = [*SMALL, "--epochs", "6", "--checkpoint_freq", "2", "--tensorboard", "1"]
    epochs = Run.epochs

    def die(self, total):
        for epoch in epochs(self, total):
            yield epoch
            if epoch == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(Run, "epochs", die)
    with pytest.raises(SystemExit):
        script("train-net.py").main(argv)
    monkeypatch.setattr(Run, "epochs", epochs)
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


def test_events_without_the_package(script, sandbox, without_package, refusal):
    without_package("tensorboard")
    err = refusal("train-net.py", [*SMALL, "--tensorboard", "1"])
    assert "--tensorboard: found 1: the package tensorboard is not installed" in err
    assert "pip install -r requirements-sweep.txt" in err
    script("train-net.py").main([*SMALL, "--epochs", "1"])


def test_a_run_with_events_continues_without_the_package(script, sandbox, without_package, refusal):
    root = script("train-net.py").main([*SMALL, "--epochs", "1", "--tensorboard", "1"]).root
    without_package("tensorboard")
    assert "tensorboard is not installed" in refusal("train-net.py", ["--continue", str(root)])
    for option in (["--continue", str(root)], ["--config", str(root / "params.yaml")]):
        assert script("train-net.py").main([*option, "--tensorboard", "0"]).args.tensorboard == 0
