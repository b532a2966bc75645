"""Experiments at scale smoke, run in this process."""

import re

import numpy as np
import pytest
import torch

import utils
from experiments import paper
from runs.log import read_rows
from sweeps import cluster
from sweeps import trials as sweep_trials

REPORT = "# Results\n\n<!-- {0} -->\nold\n<!-- end of {0} -->\n\nA sentence.\n"


@pytest.fixture
def run_experiment(sandbox, script, small_inputs, monkeypatch):
    """`run_experiment(module, parts)` runs an experiment at scale smoke, on small data: its report, and the logs."""
    monkeypatch.setenv("DWP_PATH", str(sandbox / "logs"))

    finished = {}

    def run_sweep(name, trials, resources, command, accepted=""):
        keys = [(name, trial.script_name, tuple(trial.argv)) for trial in trials]
        for key in keys:
            if key not in finished:
                finished[key] = script(key[1]).main(list(key[2])).root
        return [finished[key] for key in keys]

    load, make = utils.load_data, sweep_trials.make_trial

    def make_small(path, words, label):  # the small data sets have no MNIST, and 20 images
        small = {"mnist": "not-mnist", "6000": "2", "200": "10"}
        return make(path, [small.get(word, word) for word in words], label)

    def load_small(name, *more):
        """In place of MNIST the small images, three of each, so that some can be held out."""
        parts = load("not-mnist" if name == "mnist" else name, *more)
        return tuple(part[torch.arange(len(part.labels)).repeat(3)] for part in parts) if name == "mnist" else parts

    def small(text):
        """The arguments of runs in small batches."""
        return re.sub(r"--bs \d+", "--bs 10", text)

    monkeypatch.setattr(sweep_trials, "make_trial", make_small)
    monkeypatch.setattr(cluster, "run_sweep", run_sweep)
    monkeypatch.setattr(utils, "load_data", load_small)
    monkeypatch.setattr(paper, "HELD_OUT", 1 / 3)
    monkeypatch.setattr(paper, "FCONV", sandbox / "kernels")
    (sandbox / "kernels").mkdir()
    for k in (5, 7):
        (sandbox / "kernels" / f"vae{k}x{k}").symlink_to(small_inputs / f"vae{k}")
        folder = sandbox / "kernels" / f"conv{k}x{k}"
        folder.mkdir()
        (folder / "train.npy").symlink_to(small_inputs / f"filters{k}.npy")

    def run(module, parts, *options):
        name = module.__name__.split(".")[-1]
        monkeypatch.setitem(module.SCALES, "smoke", parts(small))
        report = sandbox / "report.md"
        report.write_text(REPORT.format(name))
        module.main(["--scale", "smoke", "--out", str(sandbox / "out"), "--report", str(report), *options])
        assert (sandbox / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (sandbox / "out" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        text = report.read_text()
        assert text.startswith(f"# Results\n\n<!-- {name} -->\n```\npython -m experiments.{name} --scale smoke")
        assert f"![{name}](out/{name}.png)" in text and "old" not in text
        assert text.endswith(f"<!-- end of {name} -->\n\nA sentence.\n")
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| .*", text, re.M)]
        logs = sorted(sandbox.glob("logs/*/runs/*/*-logs.csv"), key=lambda path: (path.parts[-4], path.parts[-2]))
        return rows, [read_rows(path) for path in logs]

    return run


def mean_and_spread(text, n=2):
    return [float(x) for x in re.fullmatch(rf"(\S+) ± (\S+) \({n}\)", text).groups()]


def colour_file(path, classes, parts=("train", "test"), learnt=8):
    """An npz file of images whose first value is the label: `learnt` of each class to learn from, two for testing."""
    rng, arrays = np.random.default_rng(0), {}
    for part in parts:
        labels = np.repeat(np.arange(classes), {"train": learnt, "test": 2}[part])
        images = rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        images[:, 0, 0, 0] = labels
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    np.savez(path, **arrays)
    return path
