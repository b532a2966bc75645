"""The few-shot comparison on small runs: what chooses, what is compared, and its statistics."""

import csv

import numpy as np
import pytest
import yaml
from scipy import stats

from experiments import few_shot
from experiments.methods import PREDICTIONS, SOURCES, Method
from runs.log import read_rows
from tests.conftest import network_argv


@pytest.fixture
def trials(small_inputs, script, monkeypatch):
    """The trials that were trained, in order, with their run directories. They run in this process, without Ray."""
    done = {}

    def run_sweep(name, trials, resources, command):
        for trial in trials:
            if trial.key not in done:
                done[trial.key] = (trial, script(trial.script_name).main(list(trial.argv)).root)
        return [done[trial.key][1] for trial in trials]

    def argv(net_cfg):
        words = network_argv(small_inputs, "fconv", net_cfg, "vae")[2:]  # without the data set
        return " ".join(words)

    methods = {
        "a": Method("train-bnn.py", f"{argv('bayes')} --ens 30 --prior sn", ["--lr 1e-9", "--lr 0.05"], ensemble=True),
        "b": Method("train-net.py", f"{argv('vanilla')} --rfe 1", ["--lr 1e-9", "--lr 0.1"]),
    }
    monkeypatch.setattr(few_shot, "run_sweep", run_sweep)
    monkeypatch.setattr(few_shot, "METHODS", methods)
    make = few_shot.make_trial

    def make_small(path, words, label):  # the small data sets have no MNIST
        return make(path, ["not-mnist" if word == "mnist" else word for word in words], label)

    monkeypatch.setattr(few_shot, "make_trial", make_small)
    return done


@pytest.fixture
def compare():
    """The comparison of both methods, into the folder `out`."""

    def run(out, *argv):
        sizes = ["--num_examples", "10", "--methods", "a", "b", "--tune_splits", "7", "8"]
        few_shot.main(
            [*sizes, "--splits", "0", "1", "2", "--seeds", "42", "43", "--ensemble", "2", "--out", str(out), *argv]
        )

    return run


def test_the_protocol(trials, compare, tmp_path, capsys):
    compare(tmp_path)
    lines = [trial.label for trial, _ in trials.values()]
    tuning = [line for line in lines if "--data not-mnist" in line]
    assert len(tuning) == 2 * 2 * 2 and lines[:8] == tuning, "two methods, settings and splits, all before MNIST"
    assert {line.split("--data_split_seed ")[1].split()[0] for line in tuning} == {"7", "8"}

    # The chosen setting and prediction have the largest mean accuracy over the tuning splits.
    settings = yaml.safe_load((tmp_path / "settings.yaml").read_text())
    for method, script in (("a", "train-bnn.py"), ("b", "train-net.py")):
        means = {}
        for setting in few_shot.METHODS[method].settings:
            for prediction, columns in PREDICTIONS[script].items():
                if prediction == "dropout":  # of networks with dropout alone
                    continue
                roots = [r for t, r in trials.values() if "not-mnist" in t.label and f"{setting} " in t.label]
                roots = [root for root in roots if script in str(root)]
                accs = [read_rows(root / f"{script}-logs.csv")[-1][columns["acc"]] for root in roots]
                assert len(accs) == 2
                means[f"{setting} | {prediction}"] = np.mean(accs)
        chosen = settings[f"10 images, {method}"]
        assert means[chosen] == max(means.values())
        assert len(settings[f"10 images, {method}, tried"]) == len(means)
        reported = [line for line in lines if "--data mnist" in line and few_shot.METHODS[method].shared in line]
        assert len(reported) == 6 and all(chosen.split(" | ")[0] in line for line in reported)

    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        [row["method"] for row in rows] == ["a", "b", "2 x a"]
        and rows[0]["splits"] == "3"
        and float(rows[0]["first_minus_this"]) == 0
    )
    assert (tmp_path / "differences.png").stat().st_size > 5000
    before = len(trials)
    compare(tmp_path)
    assert len(trials) == before

    # The ensemble of both seeds of each split.
    prediction = settings["10 images, a"].split(" | ")[1]
    roots = [root for trial, root in trials.values() if "--data mnist" in trial.label and "bnn" in str(root)]
    pairs = [few_shot.ensemble_scores(roots[i : i + 2], prediction)["acc"] for i in (0, 2, 4)]
    assert float(rows[2]["acc"]) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("prediction", ["mean network", "noise", "draws"])
def test_one_network_is_an_ensemble(prediction, small_inputs, script):
    """Its scores are those of its log: exactly, but for noise, whose draws are others."""
    argv = [*network_argv(small_inputs, "fconv", "bayes", "vae"), "--ens", "30", "--logvarinit", "-6"]
    root = script("train-bnn.py").main(argv).root
    last = read_rows(root / "train-bnn.py-logs.csv")[-1]
    expected = {score: last[column] for score, column in PREDICTIONS["train-bnn.py"][prediction].items()}
    found = few_shot.ensemble_scores([root], prediction)
    tolerance = 0.1 if prediction == "noise" else 1e-5
    assert found["nll"] == pytest.approx(expected["nll"], rel=tolerance)
    assert prediction == "noise" or found["acc"] == expected["acc"]


def test_draws_of_dropout(small_inputs, script):
    """Without dropout every draw is the network; with dropout the ensemble of its draws is another prediction."""
    for p, same in (("0", True), ("0.5", False)):
        argv = [*network_argv(small_inputs, "fconv", "vanilla-do", "vae"), "--do", p, p, "--ens", "20"]
        root = script("train-net.py").main(argv).root
        last = read_rows(root / "train-net.py-logs.csv")[-1]
        assert (last["draws/nll"] == pytest.approx(last["test_nll"], rel=1e-5)) == same
        found = few_shot.ensemble_scores([root], "dropout")
        assert found["nll"] == pytest.approx(last["draws/nll"], rel=1e-5 if same else 0.1)


def test_runs_that_a_method_starts_from(trials, monkeypatch, small_inputs):
    """They are trained first, and their directories are in the arguments of the method."""
    argv = " ".join(network_argv(small_inputs, "fconv", "vanilla", "xavier"))
    monkeypatch.setattr(few_shot, "SOURCES", {"net": ("train-net.py", argv), "unused": ("train-net.py", "--lr x")})
    words = network_argv(small_inputs, "fconv", "vanilla", "xavier")[2:]
    shared = f"{' '.join(words)} --init_list pretrained --pretrained {{net}}/model.torch"
    monkeypatch.setattr(few_shot, "METHODS", {"c": Method("train-net.py", shared, ["--lr 1e-9"])})
    sweeps = few_shot.Sweeps(None, "")
    sweeps.train_sources(["c"])
    (source,) = (root for _, root in trials.values())
    (root,) = sweeps.train("x", {"c": ["--lr 1e-9"]}, ["--data not-mnist --num_examples 10"])["c"]
    before, after = (read_rows(r / "train-net.py-logs.csv")[-1]["test_nll"] for r in (source, root))
    assert after == pytest.approx(before, rel=1e-4)


def test_the_statistics():
    """Over splits, whose seeds are averaged first; the paired interval is scipy's of a t-test on the differences."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 5, 3))
    as_scores = [[{"acc": x, "nll": 1 - x, "ece": 0.1} for x in values.ravel()] for values in (a, b)]
    first, second = few_shot.result_rows(50, dict(zip("ab", (few_shot.by_split(s, 5) for s in as_scores), strict=True)))
    assert first["acc"] == pytest.approx(a.mean()) and first["first_minus_this"] == first["difference_se"] == 0
    assert second["acc_se"] == pytest.approx(stats.sem(b.mean(1))) and second["ece_se"] == pytest.approx(0)
    test = stats.ttest_rel(a.mean(1), b.mean(1))
    assert second["first_minus_this"] / second["difference_se"] == pytest.approx(test.statistic)
    low, high = test.confidence_interval()
    assert second["difference_interval"] == pytest.approx((high - low) / 2)


def test_every_method_has_the_same_budget_and_valid_settings(script):
    assert len({len(method.settings) for method in few_shot.METHODS.values()}) == 1
    for method in few_shot.METHODS.values():
        assert len(set(method.settings)) == len(method.settings)
        for setting in method.settings:
            shared = method.shared.format(**dict.fromkeys(SOURCES, "x"))
            script(method.script).parse(f"{shared} {setting} --data not-mnist --num_examples 50".split())
    for name, line in SOURCES.values():
        script(name).parse(line.split())


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--methods", "dwp", "dwp"], "--methods: found a value twice"),
        (["--splits", "1", "1"], "--splits: found a value twice"),
        (["--methods", "x"], "invalid choice: 'x'"),
        (["--num_examples", "0"], "--num_examples: found '0'"),
    ],
)
def test_mistakes(argv, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        few_shot.main(argv)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and expected in err and len(err.splitlines()) == 1
