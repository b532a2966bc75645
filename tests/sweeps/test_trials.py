"""Trials without Ray: their identity and record, and processes that fail, are stopped, or lose their worker."""

import hashlib
import json
import os
import subprocess
import sys
import threading

import pytest

from runs.directory import ROOT, is_locked
from runs.options import NOT_IDENTIFYING
from runs.types import path_type
from sweeps.__main__ import main
from sweeps.grid import make_trials, read_sweep
from sweeps.trials import find_script, make_trial, run_trial
from tests.conftest import PARSERS, until
from tests.sweeps.conftest import command_lines, trial_of


def test_an_option_that_was_added_later_leaves_the_key_until_it_has_a_value(script, monkeypatch):
    """The key is the hash of all values but that one; with a value it is another."""
    path, argv = find_script("train-bnn.py"), ["--num_examples", "50"]
    args = vars(script("train-bnn.py").parse(argv))
    identity = {name: value for name, value in args.items() if name not in (*NOT_IDENTIFYING, "test_fraction")}
    digest = hashlib.sha256(json.dumps(["train-bnn.py", identity], sort_keys=True).encode())
    assert "num_examples" in identity and make_trial(path, argv, "").key == digest.hexdigest()[:16]
    assert make_trial(path, [*argv, "--test_fraction", "0.3"], "").key != digest.hexdigest()[:16]


def test_the_arguments_identify_a_trial(sandbox, monkeypatch):
    def key(*argv, script="train-bnn.py"):
        return make_trial(find_script(script), argv, "").key

    base = key("--seed", "1", "--lr", "0.01", "--hid_dim", "3", "4", "--vae_list", "x/y", "z", "--init_list", "vae")
    same = ["--vae_list", f"{os.getcwd()}/x/y/", f"{os.getcwd()}/x/../z"]
    same += ["--hid_dim", "3", "4", "--lr=1e-2", "--init_list", "vae"]
    for more in (
        ["--seed", "1"],
        ["--seed", "1", "--ens", "10"],  # a default, written out
        ["--seed", "1", "--name", "x", "--tmp", "--checkpoint_freq", "3", "--device", "cpu"],
    ):
        assert key(*same, *more) == base
    for more in (["--seed", "2"], ["--seed", "1", "--ens", "11"], ["--seed", "1", "--hid_dim", "4", "3"]):
        assert key(*same, *more) != base
    assert key("--seed", "1") != key("--seed", "1", script="train-net.py")
    monkeypatch.chdir(sandbox)
    assert key(*same, "--seed", "1") == base, "the script and absolute paths are found from any folder"
    assert key("--vae_list", "x", "z") != base

    (sandbox / "other.py").write_text("")
    assert key("--a", "1", script="other.py") != key("--a", "1.0", script="other.py")


def test_every_path_among_the_options_is_made_absolute():
    """A relative path names another file in another folder, so it cannot identify a trial."""
    options = [a for parser in PARSERS.values() for a in parser._actions if a.dest not in NOT_IDENTIFYING]
    paths = {a.dest for a in options if a.metavar in ("PATH", "DIR", "FILE", "NPY", "RUN_DIR")}
    assert len(paths) == 10 and paths == {a.dest for a in options if a.type is path_type}


def test_a_trial_runs_once(sandbox, other_script):
    text = "print('run directory: here'); print(sys.argv[1:], os.environ['OMP_NUM_THREADS'])"
    trial = trial_of(other_script(text), "1")
    assert trial.record()["state"] == "waiting"
    for _ in range(2):
        record = run_trial(trial, {"OMP_NUM_THREADS": "3"}, threading.Event())
        assert record == {"state": "finished", "root": f"{os.getcwd()}/here", "attempts": 1, "error": ""}
        assert trial.record() == record
    assert trial.file("out").read_text() == "run directory: here\n['1'] 3\n"


@pytest.mark.parametrize(
    "text, error",
    [
        ("sys.exit('first\\n  last line ')", "last line"),
        ("raise ValueError('some\\nthing')", "thing"),
        ("sys.exit(3)", "exit code 3, nothing on stderr"),
        ("os.kill(os.getpid(), 9)", "ended by signal 9, nothing on stderr"),
        ("os.write(2, b'\\xff' * 10**6)", ""),
    ],
)
def test_a_trial_that_fails(other_script, text, error):
    trial = trial_of(other_script(text), "1")
    record = run_trial(trial, {}, threading.Event())
    assert (record["state"], record["error"]) == ("failed" if error else "finished", error)
    assert run_trial(trial, {}, threading.Event())["attempts"] == (2 if error else 1)


def test_a_trial_that_is_stopped(sandbox, other_script):
    trial = trial_of(other_script(f"pathlib.Path({str(sandbox)!r}, 'started').touch(); signal.pause()"), "1")
    stop = threading.Event()

    def stop_when_started():
        until((sandbox / "started").exists)
        stop.set()

    thread = threading.Thread(target=stop_when_started)
    thread.start()
    assert run_trial(trial, {}, stop)["state"] == "interrupted"
    thread.join()
    assert trial.record()["state"] == "interrupted" and not is_locked(trial.file("lock"))


def test_a_finished_run_counts_whatever_its_record_says(script, sandbox, kernel_folder, capsys):
    shared = ["--kernel_dim", "5", "--z_dim", "2", "--hidden_dim", "4", "--num_epochs", "1", "--device", "cpu"]
    shared += ["--data_dir", kernel_folder(5)]
    run = script("train-vae.py").main([*shared, "--seed", "3"])
    (trial,) = make_trials(find_script("train-vae.py"), [("--seed", ["3"])], shared)
    record = {"state": "running", "root": "", "attempts": 1, "error": ""}
    trial.write_record(record)
    assert trial.record()["state"] == "interrupted"
    trial.file("out").write_text(f"run directory: {run.root}")  # the line is not yet complete
    assert trial.record()["root"] == ""
    trial.file("out").write_text(f"run directory: {run.root}\n 1 2 3")
    assert trial.record() == {**record, "state": "finished", "root": str(run.root)}
    capsys.readouterr()
    roots = main(["train-vae.py", "--seed", "3", "--name", "one", "--", *shared])
    assert roots == [run.root], "without a Ray"
    assert [t.record()["root"] for t in read_sweep(sandbox / "logs" / "sweeps" / "one")] == [str(run.root)]
    assert capsys.readouterr().out.endswith("1 of 1 trials are finished\n")
    main(["--status"])
    assert f"finished  1 of 1   test_elbo {run.rows[-1]['test_elbo']:.4g}" in capsys.readouterr().out

    trial.write_record(trial.record())
    (sandbox / "logs").rename(sandbox / "moved")
    root = sandbox / "moved" / "exman-train-vae.py" / "runs" / run.root.name
    assert [t.record()["root"] for t in read_sweep(sandbox / "moved" / "sweeps" / "one")] == [str(root)]
    (sandbox / "moved").rename(sandbox / "logs")
    for path in run.root.iterdir():
        path.unlink()
    assert trial.record() == {**record, "state": "waiting"}, "a deleted run starts again"


@pytest.mark.parametrize("text", ["", "nope", "state: 3\n", "state: x\nroot: []\nattempts: 1\nerror: ''\n"])
def test_a_damaged_record(sandbox, capsys, text):
    (trial,) = make_trials(find_script("train-net.py"), [("--seed", ["3"])], [])
    trial.file("yaml").parent.mkdir(parents=True)
    trial.file("yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["train-net.py", "--seed", "3", "--dry-run"])
    assert stop.value.code == 2 and str(trial.file("yaml")) in capsys.readouterr().err


# A worker whose watchdog kills after three seconds instead of 60, and each second lasts until the file argv[2] exists.
WORKER = """
import sys, threading
from sweeps import trials
assert "sleep 1 " in trials.WATCHDOG and "-lt 60" in trials.WATCHDOG
second = f'until [ -e "{sys.argv[2]}" ]; do sleep 0.1; done '
trials.WATCHDOG = trials.WATCHDOG.replace("sleep 1 ", second).replace("-lt 60", "-lt 3")
trials.run_trial(trials.make_trial(sys.argv[1], (), ""), {}, threading.Event())
"""


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_trial_does_not_outlive_its_worker(sandbox, other_script, stubborn):
    """It gets SIGTERM, and SIGKILL where that does not end it; until it has ended nothing else runs it."""
    text = f"""
folder = pathlib.Path({str(sandbox)!r})
if {stubborn}:
    signal.signal(signal.SIGTERM, lambda *_: (folder / "asked").touch())
(folder / "pid").write_text(f"{{os.getpid()}}\\n")
while True:
    signal.pause()
"""
    trial = trial_of(other_script(text))
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, trial.script, str(sandbox / "impatient")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    pid_file = sandbox / "pid"
    until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), worker)
    pid = pid_file.read_text().strip()
    until(lambda: any(words[:2] == ["sh", "-c"] and words[3] == pid for words in command_lines().values()), worker)
    assert run_trial(trial, {}, threading.Event()) == {"state": "busy"}
    assert trial.record()["state"] == "running"
    worker.kill()
    worker.wait()
    if stubborn:
        until((sandbox / "asked").exists)
        assert run_trial(trial, {}, threading.Event()) == {"state": "busy"}
    (sandbox / "impatient").touch()
    until(lambda: not is_locked(trial.file("lock")))
    assert trial.record()["state"] == "interrupted" and trial.record()["attempts"] == 1
    until(lambda: int(pid) not in command_lines())
