"""The terminal goes away, or what reads the output does: a run goes on to its end, or stops with a checkpoint."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from runs.directory import ROOT
from runs.files import read_yaml
from runs.log import read_rows
from tests.conftest import HEED_HANGUP, SMALL, start_script, until

ARGV = [*SMALL, "--epochs", "6"]


def only_root(sandbox):
    (root,) = (sandbox / "logs" / "exman-train-net.py" / "runs").iterdir()
    return root


def assert_finished(root, failed):
    assert len(read_rows(root / "train-net.py-logs.csv")) == 6
    assert read_yaml(root / "state.yaml")["state"] == "finished"
    notes = [line for line in (root / "train-net.py-logs.out").read_text().splitlines() if line.startswith("#")]
    assert len(notes) == (1 if failed else 0) and all("the run continues without it" in note for note in notes)


def shell(command, **options):
    """A shell's command, in which "$0" "$@" is the script; its exit code and output."""
    argv = ["bash", "-c", command, sys.executable, str(ROOT / "train-net.py"), *ARGV]
    done = subprocess.run(argv, env=os.environ | {"OMP_NUM_THREADS": "1"} | options, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "command, failed",
    [
        ('"$0" "$@" | true; exit ${PIPESTATUS[0]}', True),
        ('"$0" "$@" > /dev/full', True),
        ('"$0" "$@" 2> /dev/full', False),  # nothing is written to it without a terminal
        ('"$0" "$@" >&- 2>&-', False),  # closed before the start, so nothing fails
    ],
)
def test_an_output_that_fails_ends_nothing(command, failed, sandbox):
    if "/dev/full" in command and not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    code, out = shell(command)
    assert code == 0 and "Traceback" not in out
    assert_finished(only_root(sandbox), failed)


def test_an_experiment_whose_output_fails(sandbox, kernel_folder, font_cache):
    """What it prints, the names of its files, is lost; the files are not."""
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    argv = ["-m", "experiments.plot_kernels", "--conv", kernel_folder(3), "--out", str(sandbox / "figures")]
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, *argv], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and not done.stderr
    assert list((sandbox / "figures").glob("*.png"))


def test_a_path_that_the_output_cannot_encode(sandbox):
    code, out = shell('"$0" "$@"', PYTHONIOENCODING="ascii", DWP_PATH=str(sandbox / "Müller"))
    assert code == 0 and "M\\xfcller" in out and "Traceback" not in out


def test_a_terminal_that_closes(sandbox):
    """Without the signal, because the terminal does not control the run: what is written to it fails from then on."""
    terminal, end = pty.openpty()
    streams = {"stdin": subprocess.DEVNULL, "stdout": end, "stderr": end}
    process = start_script("train-net.py", ARGV, start_new_session=True, **streams)
    os.close(end)
    os.read(terminal, 1)  # it has begun to write
    os.close(terminal)
    assert process.wait() == 0
    root = only_root(sandbox)
    assert len(read_rows(root / "train-net.py-logs.csv")) == 6
    assert read_yaml(root / "state.yaml")["state"] == "finished"


def test_a_hangup_stops_a_run_with_a_checkpoint(sandbox, script):
    process = start_script("train-net.py", [*ARGV, "--epochs", "100000"], HEED_HANGUP)
    folder = sandbox / "logs" / "exman-train-net.py" / "runs"
    until(lambda: folder.exists() and any(folder.glob("*/checkpoint.torch")), process)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate()
    assert process.returncode == 129 and len(err.splitlines()) == 1 and "stopped by SIGHUP" in err
    root = only_root(sandbox)
    assert read_yaml(root / "state.yaml")["state"] == "stopped" and f"--continue {root}" in err


def test_a_hangup_that_is_ignored_at_the_start_stays_ignored(sandbox):
    written = 'grep -q 1 "$DWP_PATH"/*/runs/*/*.csv 2>/dev/null'
    code, out = shell(
        f'trap "" HUP; "$0" "$@" & while ! {written}; do sleep 0.1; done; kill -HUP $!; wait $!',
    )
    assert code == 0, out
    assert_finished(only_root(sandbox), failed=False)
