"""Runs that are stopped, killed, out of disk or out of numbers, and go on: nothing is lost, and the end is the same."""

import csv
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock

import runs
import utils

SMALL = ["--data", "not-mnist", "--hid_dim", "3", "4", "--device", "cpu"]
BNN = [*SMALL, "--ens", "2", "--num_examples", "30", "--bs", "8"]
# Name in the tests: script, arguments.
COMMANDS = {
    "net": ("train-net.py", [*SMALL, "--epochs", "6", "--bs", "16", "--l2", "0.001", "--aug", "1"]),
    "net-do": ("train-net.py", [*SMALL, "--epochs", "6", "--net_cfg", "vanilla-do", "--do", "0.2", "0.3"]),
    "net-steps": (
        "train-net.py",
        [*SMALL, "--epochs", "6", "--bs", "16", "--fastconv", "1", "--eval_freq", "5"],
    ),
    "bnn": ("train-bnn.py", [*BNN, "--epochs", "6", "--eval_freq", "2", "--prior", "sn-mc", "--checkpoint_freq", "1"]),
    "bnn-dwp": ("train-bnn.py", [*BNN, "--epochs", "6", "--prior_list", "vae", "vae", "--reverse", "train"]),
    "vae": ("train-vae.py", ["--kernel_dim", "5", "--z_dim", "2", "--num_epochs", "6", "--eval_freq", "4"]),
    "flow": ("train-vae.py", ["--kernel_dim", "5", "--kind", "flow", "--num_epochs", "6"]),
}


def command(name, sandbox, vae_folder):
    """Script and arguments, with small kernels and VAEs made for those that need them."""
    script, argv = COMMANDS[name]
    if script == "train-vae.py":
        kernels = 0.2 * np.random.default_rng(0).standard_normal((300, 1, 5, 5)).astype(np.float32)
        for part in ("train", "test"):
            np.save(sandbox / f"{part}.npy", kernels)
        argv = [*argv, "--data_dir", str(sandbox)]
    if "vae" in argv:
        argv = [*argv, "--vae_list", vae_folder(7), vae_folder(5)]
    return script, argv


def read_log(root):
    """The rows of the CSV log without the one column that is a time."""
    (file,) = root.glob("*-logs.csv")
    with open(file) as lines:
        return [{k: v for k, v in row.items() if k != "sec"} for row in csv.DictReader(lines)]


def assert_same_end(root, other):
    """All that two runs wrote is the same, byte for byte but for times, places and numbers of runs."""
    names = [{p.name for p in folder.iterdir() if not p.name.startswith(".")} for folder in (root, other)]
    assert names[0] | {"checkpoint-before.torch"} == names[1] | {"checkpoint-before.torch"}
    files = {name for name in names[0] if name.endswith(".torch") and "before" not in name}
    assert {"checkpoint.torch"} < files
    for name in files:
        assert (root / name).read_bytes() == (other / name).read_bytes(), name
    assert read_log(root) == read_log(other)
    params = [yaml.safe_load((folder / "params.yaml").read_text()) for folder in (root, other)]
    for key in ("root", "time", "id"):
        assert [p.pop(key) for p in params]
    assert params[0] == params[1]


def stop_at(monkeypatch, step, number):
    """Send this process a signal in the middle of that step of the next run."""
    whole = runs.Run.require_finite

    def require_finite(self, **terms):
        if self.step == step:
            monkeypatch.setattr(runs.Run, "require_finite", whole)
            signal.raise_signal(number)
        whole(self, **terms)

    monkeypatch.setattr(runs.Run, "require_finite", require_finite)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_stopped_run_goes_on_as_if_it_never_was(name, script, sandbox, vae_folder, monkeypatch, capsys):
    """In the first step, inside an epoch, and at an epoch's end; by both signals."""
    file, argv = command(name, sandbox, vae_folder)
    whole = script(file).main(argv).root
    steps = utils.load_file(whole / "checkpoint.torch", "")["step"]
    continued = []
    for i, step in enumerate((1, steps // 2, steps // 2 + 1, steps)):
        number = (signal.SIGTERM, signal.SIGINT)[i % 2]
        stop_at(monkeypatch, step, number)
        with pytest.raises(SystemExit) as stop:
            script(file).main(["--continue", continued[0]] if continued else argv)
        err = capsys.readouterr().err
        assert stop.value.code == 128 + number and len(err.splitlines()) == 1, err
        go_on = err.split(f"python {file} --continue ")[1].strip()
        continued = [go_on]
    root = script(file).main(["--continue", go_on]).root
    assert str(root) == go_on and len(list(whole.parent.iterdir())) == 2
    assert_same_end(whole, root)
    # Going on with a run that is done changes nothing.
    script(file).main(["--continue", go_on])
    assert_same_end(whole, root)


KILLS = int(os.environ.get("DWP_KILLS", "1"))
SLOW_WRITES = """
import os, runpy, sys, time
write = os.fsync
def slow(file):
    time.sleep(0.03)
    write(file)
os.fsync = slow
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(argv, slow=True, **options):
    """A script as a process of one thread, the writing of its files slowed down."""
    hook = ["-c", SLOW_WRITES] if slow else []
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *hook, runs.ROOT / argv[0], *argv[1:]],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("name", ["net", "bnn-dwp", "vae"])
def test_a_killed_run_goes_on_as_if_it_never_was(name, sandbox, vae_folder):
    """`kill -9` at random moments, every other one while a checkpoint is written (30 per script: `make soak`)."""
    file, argv = command(name, sandbox, vae_folder)
    argv = [*argv, "--num_epochs" if name == "vae" else "--epochs", str(6 + 4 * KILLS)]
    whole = start([file, *argv], slow=False)
    assert whole.wait() == 0, whole.stderr.read()
    (whole_root,) = (sandbox / "logs" / f"exman-{file}" / "runs").iterdir()

    generator = random.Random(0)
    argv, root = [file, *argv], None
    for i in range(KILLS):
        process = start(argv)
        while root is None or not (root / "params.yaml").exists():
            assert process.poll() is None, process.stderr.read()
            folders = sorted((sandbox / "logs" / f"exman-{file}" / "runs").iterdir())
            root = folders[1] if len(folders) > 1 else None
            time.sleep(0.01)
        argv = [file, "--continue", str(root)]
        until = time.monotonic() + generator.uniform(0, 4)
        in_a_write = i % 2 == (name == "net")  # with one kill per script, of both kinds among them
        if in_a_write:  # from here on until a checkpoint is being written, at the latest when the process ends
            until += 10
            while not any(root.glob(".checkpoint.torch.*")) and process.poll() is None and time.monotonic() < until:
                time.sleep(0.001)
        else:
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.01)
        process.kill()
        process.communicate()
        left = [p for name in runs.CHECKPOINTS if (p := root / name).exists()]
        for checkpoint in left:
            utils.load_file(checkpoint, "")
    process = start(argv, slow=False)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert_same_end(whole_root, root)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(script, sandbox, vae_folder, capsys):
    file, argv = command("net", sandbox, vae_folder)
    whole, other = (script(file).main(argv).root for _ in range(2))
    for damaged in runs.CHECKPOINTS:
        content = (other / damaged).read_bytes()
        (other / damaged).write_bytes(content[: len(content) // 2])
        if damaged == runs.CHECKPOINTS[0]:
            script(file).main(["--continue", str(other)])
            assert "going on from the one before" in capsys.readouterr().err
            assert_same_end(whole, other)
            (other / damaged).write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        script(file).main(["--continue", str(other)])
    assert stop.value.code == 2 and "checkpoint-before.torch" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["net", "bnn", "vae"])
def test_a_full_disk(name, script, sandbox, vae_folder, monkeypatch, capsys):
    """No file may grow beyond a limit from some step on: one line, and the checkpoint before is still there."""
    file, argv = command(name, sandbox, vae_folder)
    whole = script(file).main(argv).root
    size = (whole / "checkpoint.torch").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    check = runs.Run.require_finite

    def require_finite(self, **terms):
        if self.epoch == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
        check(self, **terms)

    monkeypatch.setattr(runs.Run, "require_finite", require_finite)
    try:
        with pytest.raises(SystemExit) as stop:
            script(file).main(argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        monkeypatch.setattr(runs.Run, "require_finite", check)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and "cannot be written: File too large" in err
    (root,) = (p for p in whole.parent.iterdir() if p != whole)
    assert 0 < utils.load_file(root / "checkpoint.torch", "")["epoch"] <= 4
    assert not list(root.glob(".*.torch.*")), "half-written files"
    script(file).main(["--continue", str(root)])
    assert_same_end(whole, root)


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("net", ["--lr", "1e30"], "is not finite"),
        ("net", ["--l2", "1e38"], "the term of l2 is not finite"),
        ("bnn-dwp", [], "step 1 (epoch 1): the KL of features.conv2 is not finite"),
        ("bnn", ["--lr", "1e30"], "is not finite"),
        ("vae", ["--lr", "1e30"], "is not finite"),
    ],
)
def test_a_loss_that_is_not_finite(name, options, expected, script, sandbox, vae_folder, capsys):
    file, argv = command(name, sandbox, vae_folder)
    if name == "bnn-dwp":
        path = sandbox / "vae5x5" / "vae_params.torch"
        state = torch.load(path, weights_only=True)
        state["decoder.fc_mu.0.bias"].fill_(3e38)
        torch.save(state, path)
    with pytest.raises(SystemExit) as stop:
        script(file).main([*argv, *options, "--eval_freq", "100"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1
    assert "step " in err and expected in err and "checkpoint" in err
    for log in sandbox.glob("logs/*/runs/*/*-logs.csv"):
        assert "nan" not in log.read_text() and "inf" not in log.read_text()


def test_parameters_that_are_not_finite_make_no_checkpoint(script, sandbox, monkeypatch, capsys):
    """A gradient may be infinite where the loss is not."""

    def step(self, closure=None):
        next(iter(self.param_groups[0]["params"])).data.fill_(torch.inf)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(SystemExit):
        script("train-net.py").main([*SMALL, "--epochs", "1", "--bs", "60", "--tmp"])
    assert "not finite" in capsys.readouterr().err and not list(sandbox.glob("logs/*/tmp/*/checkpoint.torch"))


ARGS = Namespace(tmp=False, continue_run=None, config=None, x=1)


def launch(barrier):
    barrier.wait()
    runs.Run("train-net.py", ARGS, torch.device("cpu"))


def test_fifty_launches_at_once(sandbox):
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(50)
    processes = [fork.Process(target=launch, args=(barrier,)) for _ in range(50)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 50
    base = sandbox / "logs" / "exman-train-net.py"
    numbers = sorted(int(p.name[:6]) for p in (base / "runs").iterdir())
    assert numbers == list(range(1, 51)) and len(list((base / "index").iterdir())) == 50


def hold(path, held):
    FileLock(path).acquire()
    held.set()
    time.sleep(60)


def test_a_lock_ends_with_the_process_that_held_it(sandbox):
    fork = multiprocessing.get_context("fork")
    base = sandbox / "logs" / "exman-train-net.py"
    base.mkdir(parents=True)
    held = fork.Event()
    process = fork.Process(target=hold, args=(base / ".lock", held))
    process.start()
    assert held.wait(10)
    process.kill()
    process.join()
    assert runs.Run("train-net.py", ARGS, torch.device("cpu")).root.name.startswith("000001-")


def test_continue_refuses(script, sandbox, vae_folder, capsys):
    file, argv = command("net", sandbox, vae_folder)
    run = script(file).main(argv)
    held = FileLock(run.root / ".lock")
    params = (run.root / "params.yaml").read_text()

    def refusal(name, *more, root=run.root):
        with pytest.raises(SystemExit) as stop:
            script(name).main(["--continue", str(root), *more])
        err = capsys.readouterr().err
        assert stop.value.code == 2 and len(err.splitlines()) == 1
        return err

    assert "--lr: found 0.5, expected the run's own 0.001" in refusal(file, "--lr", "0.5")
    assert "found a run of train-net.py, expected one of train-bnn.py" in refusal("train-bnn.py")
    assert "--config" in refusal(file, "--config", "x.yaml")
    assert "nowhere" in refusal(file, root="nowhere")
    with held:
        assert "found a process that runs it" in refusal(file)
    script(file).main(["--continue", str(run.root), "--lr", "0.001"])
    capsys.readouterr()
    (run.root / "params.yaml").write_text(params.replace("- 4", "- 5"))
    assert "checkpoint.torch: model: features.conv2.weight is" in refusal(file)
    (run.root / "params.yaml").write_text(params)
    (run.root / "train-net.py-logs.csv").write_text("t,loss\n1,2\n")
    assert "found 1 rows in the log, expected 6" in refusal(file)


def test_two_processes_same_numbers_and_what_they_depend_on(sandbox, vae_folder):
    file, argv = command("bnn-dwp", sandbox, vae_folder)
    both = [start([file, *argv], slow=False) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    roots = list((sandbox / "logs" / f"exman-{file}" / "runs").iterdir())
    assert_same_end(*roots)
    environment = yaml.safe_load((roots[0] / "params.yaml").read_text())["environment"]
    assert environment["torch"] == torch.__version__ and environment["threads"] == 1
    assert environment["device"] == "cpu" and environment["script"] == file
    git = ["git", "-C", runs.ROOT, "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert environment["commit"].removesuffix("-dirty") == head.stdout.strip()
