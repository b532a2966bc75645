"""The command that collects runs: the folder of a sweep, and missing packages."""

import csv

from sweeps import collect
from sweeps.grid import make_trials, write_sweep
from sweeps.trials import find_script


def test_a_sweep(write_run, sandbox, capsys):
    """The runs of the sweep's trials alone are collected, and not those of trials that have none yet."""
    trials = make_trials(find_script("train-net.py"), [("--seed", ["1..3"])], ["--epochs", "1"])
    write_sweep("some", trials)
    folder = sandbox / "logs" / "sweeps" / "some"
    for number, trial in enumerate(trials[:2], 1):
        root = write_run("train-net.py", number, [{"t": 1, "test_acc": 0.5}], seed=number)
        trial.write_record({"state": "finished", "root": str(root), "attempts": 1, "error": ""})
    write_run("train-net.py", 7, [{"t": 1, "test_acc": 0.5}], seed=7)
    collect.main([str(folder)])
    with open(folder / "collected" / "runs.csv") as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["1", "2"]
    assert "1 of 3 trials have no run yet" in capsys.readouterr().err


def test_the_printed_metrics(write_run, capsys, sandbox):
    """Of a Bayesian network also those of its predictive distribution, by which methods are compared."""
    scores = {"ens[1]_test_acc": 0.7, "test_loss": 3, "test_nll": 0.9, "draws/acc": 0.8, "draws/brier": 0.3, "KL": 5}
    write_run("train-bnn.py", 1, [{"t": 1, **scores}])
    collect.main([str(sandbox / "logs")])
    printed = [line.split()[1:4] for line in capsys.readouterr().out.splitlines() if "last_" in line]
    assert sorted(printed) == [
        ["last_draws/acc", "1", "0.8"],
        ["last_ens[1]_test_acc", "1", "0.7"],
        ["last_test_nll", "1", "0.9"],
    ]


def test_without_the_packages(write_run, without_package, refusal):
    write_run("train-net.py", 1, [{"t": 1, "test_acc": 0.5}])
    without_package("pyarrow")
    assert "collect: the package pyarrow is not installed" in refusal("sweeps.collect", [])
