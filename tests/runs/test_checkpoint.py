"""Checkpoints: which one a run continues from, what it refuses, and what its numbers depend on."""

import subprocess

import pytest
import torch
import yaml
from filelock import FileLock

from runs.checkpoint import CHECKPOINTS
from runs.directory import ROOT
from tests.conftest import assert_same_end


def test_a_damaged_checkpoint_falls_back_to_the_one_before(script, small_run, capsys):
    file, argv = small_run("net")
    whole, other = (script(file).main(argv).root for _ in range(2))
    for damaged in CHECKPOINTS:
        content = (other / damaged).read_bytes()
        (other / damaged).write_bytes(content[: len(content) // 2])
        if damaged == CHECKPOINTS[0]:
            script(file).main(["--continue", str(other)])
            assert "continuing from the one before" in capsys.readouterr().err
            assert_same_end(whole, other)
            (other / damaged).write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        script(file).main(["--continue", str(other)])
    assert stop.value.code == 2 and "checkpoint-before.torch" in capsys.readouterr().err


def test_continue_refuses(script, small_run, refusal, capsys):
    file, argv = small_run("net")
    run = script(file).main(argv)
    held = FileLock(run.root / ".lock")
    params = (run.root / "params.yaml").read_text()
    capsys.readouterr()

    def refused(name, *more, root=run.root):
        return refusal(name, ["--continue", str(root), *more])

    assert "--lr: found 0.5, expected the run's own 0.001" in refused(file, "--lr", "0.5")
    assert "found a run of train-net.py, expected one of train-bnn.py" in refused("train-bnn.py")
    assert "--config" in refused(file, "--config", "x.yaml")
    assert "nowhere" in refused(file, root="nowhere")
    with held:
        assert "already running in another process" in refused(file)
    script(file).main(["--continue", str(run.root), "--lr", "0.001"])
    capsys.readouterr()
    (run.root / "params.yaml").write_text(params.replace("- 4", "- 5"))
    assert "checkpoint.torch: not a checkpoint of this run (model: features.conv2.weight is" in refused(file)
    (run.root / "params.yaml").write_text(params)
    (run.root / "train-net.py-logs.csv").write_text("t,loss\n1,2\n")
    assert "train-net.py-logs.csv: found 1 rows, expected at least 6" in refused(file)


def test_what_the_numbers_depend_on(script, small_run):
    """The run's record of it; that two processes get the same numbers is what the tests of kills compare."""
    file, argv = small_run("bnn-dwp")
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        root = script(file).main(argv).root
    finally:
        torch.set_num_threads(threads)
    environment = yaml.safe_load((root / "params.yaml").read_text())["environment"]
    assert environment["torch"] == torch.__version__ and environment["threads"] == 3
    assert environment["device"] == "cpu" and environment["script"] == file
    git = ["git", "-C", ROOT, "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert environment["commit"].removesuffix("-dirty") == head.stdout.strip()
