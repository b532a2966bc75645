"""Runs that are stopped, killed or out of disk continue: nothing is lost, and the end is that of a whole run."""

import fcntl
import os
import pty
import random
import resource
import signal
import termios
import time
from functools import partial

import pytest

from runs.checkpoint import CHECKPOINTS, find_checkpoints, load_file
from runs.files import read_yaml
from runs.loop import Run
from tests.conftest import HEED_HANGUP, SMALL, SMALL_RUNS, assert_same_end, start_script, until

KILLS = int(os.environ.get("DWP_KILLS", "1"))
SLOW_WRITES = """
import os, time
write = os.fsync
def slow(file):
    time.sleep(0.03)
    write(file)
os.fsync = slow
"""
# Makes the file `noticed` when the first signal was handled; from then on no write ends.
NO_WRITE_AFTER_A_SIGNAL = """
import os, pathlib, signal, time
noticed = pathlib.Path(noticed)
install, write = signal.signal, os.fsync
def marking(number, handler):
    def handle(*arguments):
        handler(*arguments)
        noticed.touch()
    return install(number, handle if callable(handler) else handler)
def blocked(file):
    while noticed.exists():
        time.sleep(0.01)
    write(file)
signal.signal, os.fsync = marking, blocked
"""


@pytest.mark.parametrize("name", SMALL_RUNS)
def test_a_stopped_run_continues_as_if_it_never_was(name, script, small_run, stop_at, capsys):
    """In the first step, inside an epoch, and at an epoch's end; by both signals."""
    file, argv = small_run(name)
    whole = script(file).main(argv).root
    steps = load_file(whole / "checkpoint.torch")["step"]
    command = argv
    for i, step in enumerate((1, steps // 2, steps // 2 + 1, steps)):
        number = (signal.SIGTERM, signal.SIGINT)[i % 2]
        stop_at(step, number)
        with pytest.raises(SystemExit) as stop:
            script(file).main(command)
        err = capsys.readouterr().err
        assert stop.value.code == 128 + number and len(err.splitlines()) == 1, err
        command = ["--continue", err.split(f"python {file} --continue ")[1].strip()]
    root = script(file).main(command).root
    assert ["--continue", str(root)] == command and len(list(whole.parent.iterdir())) == 2
    assert_same_end(whole, root)
    # To continue a run that is done changes nothing.
    script(file).main(command)
    assert_same_end(whole, root)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_a_process_at_once(number, sandbox):
    """While the first one's checkpoint is being written: no traceback, and the checkpoint before is still there."""
    argv = [*SMALL, "--epochs", "100000", "--eval_freq", "100000", "--checkpoint_freq", "1"]
    noticed = sandbox / "noticed"
    process = start_script("train-net.py", argv, f"noticed = {str(noticed)!r}{NO_WRITE_AFTER_A_SIGNAL}")
    checkpoint = until(lambda: next(sandbox.glob("logs/*/runs/*/checkpoint.torch"), None), process)
    process.send_signal(number)
    until(noticed.exists, process)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number, err
    assert len(err.splitlines()) == 1 and f"stopped at once by a second signal, {number.name}" in err
    assert not list(checkpoint.parent.glob(".*.torch.*")), "half-written files"
    # The second signal may come between the two renames at the end of a write.
    state = load_file(find_checkpoints(checkpoint.parent)[0])
    assert state["epoch"] >= 1 and f"run directory: {checkpoint.parent}\n" in out


def close_terminals(file, argv, find_root):
    """Close the terminal of a run at random moments of the training; the run's directory."""
    generator = random.Random(1)
    codes = []
    for _ in range(max(1, KILLS // 3)):
        terminal, end = pty.openpty()
        process = start_script(
            *(file, argv, HEED_HANGUP),
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(end)
        printed = b""
        while b"run directory: " not in printed:
            printed += os.read(terminal, 10_000)
        root = until(find_root, process)
        argv = ["--continue", str(root)]
        time.sleep(generator.uniform(0, 0.5))
        os.close(terminal)
        codes.append(process.wait())
        state = read_yaml(root / "state.yaml")["state"]
        # A run that is finished heeds no signal while its process exits.
        ends = ((128 + signal.SIGHUP, "stopped"), (0, "finished"), (-signal.SIGHUP, "finished"))
        assert (codes[-1], state) in ends
    assert KILLS == 1 or 128 + signal.SIGHUP in codes
    return root


def kill(file, argv, find_root, first_in_a_write):
    """`kill -9` a run at random moments, every other one while a checkpoint is written; the run's directory."""
    generator = random.Random(0)
    root = None
    for i in range(KILLS):
        process = start_script(file, argv, SLOW_WRITES)
        root = root or until(find_root, process)
        argv = ["--continue", str(root)]
        in_a_write = first_in_a_write == (i % 2 == 0)
        end = time.monotonic() + generator.uniform(0, 4) + 10 * in_a_write
        while process.poll() is None and time.monotonic() < end:
            if in_a_write and any(root.glob(".checkpoint.torch.*")):
                break
            time.sleep(0.001)
        process.kill()
        process.communicate()
        for checkpoint in CHECKPOINTS:
            if (root / checkpoint).exists():
                load_file(root / checkpoint)
    return root


@pytest.mark.parametrize("name", ["net", "bnn-dwp", "vae"])
def test_runs_that_are_killed_or_whose_terminal_vanishes_continue_as_if_they_never_were(name, sandbox, small_run):
    """One kill and one closed terminal per script; `make soak` has 30 and 10.

    The end is that of a whole run in another process.
    """
    file, argv = small_run(name)
    argv = [*argv, "--num_epochs" if name == "vae" else "--epochs", str(6 + 4 * KILLS)]

    def run_to_its_end(argv):
        process = start_script(file, argv)
        _, err = process.communicate()
        assert process.returncode == 0, err

    run_to_its_end(argv)
    (whole,) = known = list((sandbox / "logs" / f"exman-{file}" / "runs").iterdir())

    def find_root():
        """The directory of the new run, if it has one yet."""
        folders = (path.parent for path in sandbox.glob(f"logs/exman-{file}/runs/*/params.yaml"))
        return next((folder for folder in folders if folder not in known), None)

    # With one kill per script, there are kills of both kinds.
    for interrupt in (partial(kill, first_in_a_write=name != "net"), close_terminals):
        root = interrupt(file, argv, find_root)
        run_to_its_end(["--continue", str(root)])
        assert_same_end(whole, root)
        known.append(root)


@pytest.mark.parametrize("name", ["net", "bnn", "vae"])
def test_a_full_disk(name, script, small_run, monkeypatch, capsys):
    """No file may grow beyond a limit from some step on: one line, and the checkpoint before is still there."""
    file, argv = small_run(name)
    whole = script(file).main(argv).root
    size = (whole / "checkpoint.torch").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    check = Run.require_finite

    def require_finite(self, terms):
        if self.epoch == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
        check(self, terms)

    monkeypatch.setattr(Run, "require_finite", require_finite)
    try:
        with pytest.raises(SystemExit) as stop:
            script(file).main(argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        monkeypatch.setattr(Run, "require_finite", check)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and "cannot be written: File too large" in err
    (root,) = (p for p in whole.parent.iterdir() if p != whole)
    assert 0 < load_file(root / "checkpoint.torch")["epoch"] <= 4
    assert not list(root.glob(".*.torch.*")), "half-written files"
    script(file).main(["--continue", str(root)])
    assert_same_end(whole, root)
