"""Intervals of differences for new splits and new seeds."""

import csv
import re
import shlex

import numpy as np
import pytest
from scipy import stats

from experiments import seeds
from runs.directory import ROOT

TEXT = (ROOT / "RESULTS.md").read_text()
COMMANDS = re.findall(r"^python -m experiments.seeds (.*)$", TEXT, re.MULTILINE)


def test_half_intervals_are_those_of_scipy():
    """That over splits is of one sample, that over both has the error of Welch's test of two samples."""
    values = np.random.default_rng(0).normal(size=(10, 3))
    one = stats.ttest_1samp(values.mean(1), 0).confidence_interval()
    two = stats.ttest_ind(values.mean(1), values.mean(0), equal_var=False).confidence_interval()
    halves = [(interval.high - interval.low) / 2 for interval in (one, two)]
    assert seeds.half_intervals(values) == pytest.approx(halves, rel=1e-12)
    assert np.isnan(seeds.half_intervals(values[:, :1])[1]) and np.isnan(seeds.half_intervals(values[:1])).all()
    assert seeds.half_intervals(np.ones((10, 3))) == (0, 0)


@pytest.mark.parametrize(("by_split", "by_seed", "expected"), [(1, 0, 0.95), (1, 1, 0.73), (0, 0.3, 0.87)])
def test_coverage(by_split, by_seed, expected):
    """Of the mean 0, by tables of 10 splits and 3 seeds with noise of deviation 1; `expected` is that over splits."""
    rng, inside = np.random.default_rng(0), []
    for _ in range(1000):
        rows, columns = by_split * rng.normal(size=(10, 1)), by_seed * rng.normal(size=3)
        values = rows + columns + rng.normal(size=(10, 3))
        inside.append([abs(values.mean()) <= half for half in seeds.half_intervals(values)])
    over_splits, over_both = np.mean(inside, 0)
    assert over_splits == pytest.approx(expected, abs=0.03)
    assert 0.93 < over_both < 0.99


def test_the_tables_of_results(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(COMMANDS) == 3
    for command in COMMANDS:
        seeds.main(shlex.split(command))
        assert f"python -m experiments.seeds {command}\n```\n\n{capsys.readouterr().out}" in TEXT


def write(path, runs):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["num_examples", "method", "data_split_seed", "seed", "acc", "nll", "ece"])
        writer.writerows(runs)
    return str(path)


def test_differences_are_paired(tmp_path, capsys):
    """By split and seed, whatever the order of the rows; a method is read from the first file with that many images."""
    runs = [[50, "a", k, s, 0.8 + 0.01 * k + 0.001 * s, 1, 0] for k in (0, 1) for s in (1, 2)]
    others = [[50, "b", k, s, 0.7 + 0.02 * k + 0.002 * s, 2, 0] for k in (1, 0) for s in (2, 1)]
    more = [[100, name, k, 1, acc, 1, 0] for k in (0, 1) for name, acc in (("b", 0.9), ("a", 0.8))]
    files = [write(tmp_path / "1.csv", runs), write(tmp_path / "2.csv", [[50, "a", 0, 1, 0, 9, 0], *others, *more])]
    seeds.main([*files, "--scores", "acc", "nll"])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:5] for row in rows] == [
        ["50", "accuracy, points", "b", "+9.40, +9.30", "+9.35"],
        ["50", "NLL, nats", "b", "-1.000, -1.000", "-1.000"],
        ["100", "accuracy, points", "b", "-10.00", "-10.00"],
        ["100", "NLL, nats", "b", "+0.000", "+0.000"],
    ]


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        ([], "", "found no run"),
        ([[50, "a", 0, 1, "x", 1, 0]], "", "could not convert string to float"),
        ([[50, "a", 0, 1, 0.5, 1]], "", "expected the runs.csv"),
        (
            [[50, "a", 0, 1, 0.5, 1, 0], [50, "a", 1, 2, 0.5, 1, 0]],
            "",
            "a: found 2 runs, expected one for each of [0, 1]",
        ),
        ([[50, "a", 0, 1, 0.5, 1, 0]] * 2, "", "found split 0, seed 1 of a twice"),
        ([[50, "a", 0, 1, 0.5, 1, 0]], "--first b", "--first: found b, expected of a"),
        (
            [[50, "a", 0, 1, 0.5, 1, 0], [50, "b", 0, 2, 0.5, 1, 0]],
            "",
            "b: found other splits or seeds than those of a, expected the same",
        ),
    ],
)
def test_mistakes(runs, options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        seeds.main([write(tmp_path / "runs.csv", runs), *options.split()])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_other_files(tmp_path, capsys):
    for path in (tmp_path / "missing.csv", ROOT / "data" / "fconv" / "conv7x7" / "test.npy", ROOT / "requirements.txt"):
        with pytest.raises(SystemExit) as ended:
            seeds.main([str(path)])
        assert ended.value.code == 2
        assert f"{path}: " in capsys.readouterr().err
