"""The few-shot comparison and its protocol on small runs: what chooses, what is compared, and its statistics."""

import csv

import numpy as np
import pytest
import yaml
from scipy import stats

from experiments import few_shot, protocol
from experiments.methods import METHODS, PREDICTIONS, SOURCES, Method, with_kernels
from runs.directory import ROOT
from runs.errors import NOT_FINITE
from runs.log import read_rows
from sweeps import cluster
from sweeps import trials as sweep_trials
from tests.conftest import network_argv


@pytest.fixture
def trials(small_inputs, script, monkeypatch):
    """The trials that were trained, in order, with their run directories. They run in this process, without Ray.

    A trial with the learning rate 1e30 fails.
    """
    done = {}

    def run_sweep(name, trials, resources, command, accepted):
        for trial in trials:
            if "--lr 1e30" in trial.label:
                assert accepted == NOT_FINITE
                done[trial.key] = (trial, None)
            elif trial.key not in done:
                done[trial.key] = (trial, script(trial.script_name).main(list(trial.argv)).root)
        return [done[trial.key][1] for trial in trials]

    def argv(net_cfg):
        words = network_argv(small_inputs, "fconv", net_cfg, "vae")[2:]  # without the data set
        return " ".join(words)

    rates = ["--lr 1e30", "--lr 1e-9", "--lr 0.05"]
    methods = {
        "a": Method("train-bnn.py", f"{argv('bayes')} --draws 30 --prior sn", rates, "draws", ensemble=True, epochs=2),
        "b": Method(
            "train-net.py", f"{argv('vanilla')} --rfe 1", ["--lr 1e-9", "--lr 0.1", "--lr 1"], "network", epochs=2
        ),
    }
    monkeypatch.setattr(cluster, "run_sweep", run_sweep)
    monkeypatch.setattr(few_shot, "METHODS", methods)
    make = sweep_trials.make_trial

    def make_small(path, words, label):  # the small data sets have no MNIST, and 10 images to train on
        return make(path, [{"mnist": "not-mnist", "12": "10"}.get(word, word) for word in words], label)

    monkeypatch.setattr(sweep_trials, "make_trial", make_small)
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


@pytest.mark.parametrize("by, letters", [("acc", 10), ("nll", 12)])
def test_the_protocol(by, letters, trials, compare, tmp_path, capsys):
    more = [] if letters == 10 else ["--tune_examples", str(letters)]
    compare(tmp_path, "--choose_by", by, *more)
    lines = [trial.label for trial, _ in trials.values()]
    tuning = [line for line in lines if "--data not-mnist" in line]
    assert len(tuning) == 2 * 3 * 2 and lines[:12] == tuning, "two methods, settings and splits, all before MNIST"
    assert {line.split("--data_split_seed ")[1].split()[0] for line in tuning} == {"7", "8"}
    assert all(f"--num_examples {letters} " in line for line in tuning)
    assert all("--num_examples 10 " in line for line in lines[12:])
    drawn = [line for line in lines if "--draws 30" in line]
    fewer = [line for line in drawn if line in tuning and by == "acc"]
    assert [line for line in drawn if line.endswith(" --draws 10")] == fewer and len(drawn) == 6 + 6

    # The chosen setting has the best mean over the tuning splits of the score of the method's prediction.
    settings = yaml.safe_load((tmp_path / "settings.yaml").read_text())
    for method in ("a", "b"):
        row = few_shot.METHODS[method]
        column, means = PREDICTIONS[row.prediction].columns[by], {}
        for setting in row.settings:
            roots = [
                r
                for t, r in trials.values()
                if "not-mnist" in t.label and f"{row.shared} --epochs 2 {setting} " in t.label
            ]
            assert len(roots) == 2
            if "1e30" not in setting:
                means[setting] = np.mean([read_rows(root / f"{row.script}-logs.csv")[-1][column] for root in roots])
        chosen = settings[protocol.TASKS.format(letters)][method]
        assert means[chosen] == (max if by == "acc" else min)(means.values())
        with open(tmp_path / "tried.csv", newline="") as file:
            tried = {row["setting"]: row[by] for row in csv.DictReader(file) if row["method"] == method}
        assert len(tried) == 3 and (tried.get("--lr 1e30") == "") == (method != "b")
        assert float(tried[chosen]) == pytest.approx(means[chosen])
        reported = [line for line in lines if "--data mnist" in line and f"{row.shared} --epochs 2 {chosen}" in line]
        assert len(reported) == 6

    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["a", "b", "ensemble of 2: a"] and rows[0]["splits"] == "3"
    assert [row["first"] for row in rows] == ["a", "a", "ensemble of 2: a"]
    assert float(rows[0]["acc_difference"]) == float(rows[2]["nll_difference"]) == 0
    with open(tmp_path / "by_split.csv", newline="") as file:
        splits = [row for row in csv.DictReader(file) if row["method"] == "a"]
    assert [row["data_split_seed"] for row in splits] == ["0", "1", "2"]
    for score in ("acc", "nll", "ece"):
        values = [float(row[score]) for row in splits]
        assert float(rows[0][score]) == pytest.approx(np.mean(values))
        assert float(rows[0][f"{score}_se"]) == pytest.approx(np.std(values, ddof=1) / 3**0.5)
    with open(tmp_path / "runs.csv", newline="") as file:
        runs = [row for row in csv.DictReader(file) if row["method"] == "a"]
    assert [(row["data_split_seed"], row["seed"]) for row in runs] == [(k, s) for k in "012" for s in ("42", "43")]
    for score in ("acc", "nll", "ece"):
        means = np.reshape([float(row[score]) for row in runs], (3, 2)).mean(1)
        assert means == pytest.approx([float(row[score]) for row in splits])
    for row in runs:
        task = f"--num_examples 10 --data_split_seed {row['data_split_seed']} --seed {row['seed']} --data mnist"
        (root,) = [r for t, r in trials.values() if task in t.label and few_shot.METHODS["a"].shared in t.label]
        assert float(row["brier"]) == read_rows(root / "train-bnn.py-logs.csv")[-1]["draws/brier"]
    assert (tmp_path / "differences.png").stat().st_size > 5000
    before = len(trials)
    compare(tmp_path, "--choose_by", by, *more)
    assert len(trials) == before

    # The ensemble of both seeds of each split.
    reported = f"{few_shot.METHODS['a'].shared} --epochs 2 {settings[protocol.TASKS.format(letters)]['a']}"
    roots = [root for trial, root in trials.values() if "--data mnist" in trial.label and reported in trial.label]
    pairs = [few_shot.ensemble_score("a", few_shot.METHODS["a"], roots[i : i + 2])["acc"] for i in (0, 2, 4)]
    assert float(rows[2]["acc"]) == pytest.approx(np.mean(pairs))


def test_settings_of_a_file(trials, compare, tmp_path, capsys):
    """They are used as they are; a method that the file lacks is tuned."""
    file, key = tmp_path / "settings.yaml", protocol.TASKS.format(10)
    file.write_text(yaml.safe_dump({key: {"b": "--lr 0.1", "other": "--lr 9"}}))
    compare(tmp_path / "out", "--settings", str(file))
    tuning = [trial.label for trial, _ in trials.values() if "--data not-mnist" in trial.label]
    assert len(tuning) == 3 * 2 and all(few_shot.METHODS["a"].shared in line for line in tuning)
    found = yaml.safe_load((tmp_path / "out" / "settings.yaml").read_text())[key]
    assert list(found) == ["a", "b"] and found["b"] == "--lr 0.1"
    assert sum(few_shot.METHODS["b"].shared in trial.label for trial, _ in trials.values()) == 3 * 2
    for content, words in (
        ({"other": 1}, f"found 'other', expected '{key}'"),
        ({key: {"b": "--lr 7"}}, "found '--lr 7' for b, expected one of its settings"),
    ):
        file.write_text(yaml.safe_dump(content))
        with pytest.raises(SystemExit) as stop:
            compare(tmp_path / "out", "--settings", str(file))
        assert stop.value.code == 2 and f"--settings {file}: {words}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        compare(tmp_path, "--settings", str(file))
    assert stop.value.code == 2 and f"--settings {file}: found it in --out" in capsys.readouterr().err
    assert yaml.safe_load(file.read_text()) == content


@pytest.mark.parametrize("file", sorted((ROOT / "experiments" / "results").glob("*/*settings.yaml")), ids=str)
def test_the_stored_settings(file):
    """They are settings of the methods of today, among them methods with the VAEs of another folder."""
    named = yaml.safe_load(file.read_text())[protocol.TASKS.format(50)]
    methods = {name: METHODS[name.split(" of ")[0]] for name in named}  # "dwp of FOLDER": dwp with other VAEs
    found = protocol.read_settings(str(file), 50, methods)
    assert {name: own.setting for name, own in found.items()} == named and named


def test_a_method_without_a_setting_that_finished(trials, compare, tmp_path, monkeypatch, capsys):
    failing = few_shot.METHODS["a"]._replace(settings=["--lr 1e30"])
    monkeypatch.setattr(few_shot, "METHODS", few_shot.METHODS | {"a": failing})
    with pytest.raises(SystemExit) as stop:
        compare(tmp_path)
    assert stop.value.code == 2 and "found no setting of a whose runs all finished" in capsys.readouterr().err


def test_the_vaes_of_other_folders(sandbox, tmp_path, monkeypatch, capsys):
    """Each method that uses those of data/fconv is tuned with the others too; one that uses none is not."""
    found = []

    def run_sweep(name, trials, resources, command, accepted):
        found.extend(trial.label for trial in trials)
        raise InterruptedError

    monkeypatch.setattr(cluster, "run_sweep", run_sweep)
    monkeypatch.setattr(protocol.Sweeps, "train_sources", lambda *more: {"narrow": "x"})
    folders = [str(tmp_path / "a b"), f"{ROOT}/data/fconv-c"]  # one starts with the path of data/fconv
    argv = ["--num_examples", "50", "--methods", "frozen", "narrow", "frozen-xavier", "--against"]
    (tmp_path / "a b" / "vae7x7").mkdir(parents=True)
    with pytest.raises(SystemExit):
        few_shot.main([*argv, *folders])
    expected = f"--against {folders[0]}: found no {folders[0]}/vae5x5, expected it for frozen"
    assert expected in capsys.readouterr().err and not found
    monkeypatch.setattr(few_shot.Path, "exists", lambda path: True)
    with pytest.raises(InterruptedError):
        few_shot.main([*argv, *folders])
    tasks = 9 * 6
    assert len(found) == 5 * tasks and len(set(found)) == len(found)
    for i, path in ((0, "data/fconv/vae7x7"), (3, f"'{folders[0]}'/vae7x7"), (4, f"{folders[1]}/vae5x5")):
        assert all(path in label for label in found[i * tasks : (i + 1) * tasks])
    with pytest.raises(SystemExit):
        few_shot.main([*argv, folders[0], folders[0]])
    assert "--against: found frozen of a b twice" in capsys.readouterr().err


@pytest.mark.parametrize("method, uses", [("dwp-aug-xavier", True), ("sn-aug-xavier", False), ("l2-aug-filters", True)])
def test_whether_other_vaes_are_used(method, uses):
    """As a start, as a prior, or not at all."""
    method = METHODS[method]
    other = with_kernels(method, "/other")
    assert ("/other/vae7x7" in other.shared) == uses == (other != method)


@pytest.mark.parametrize("file, prediction", [("train-net.py", "network"), ("train-bnn.py", "draws")])
def test_one_network_is_an_ensemble(file, prediction, small_inputs, script):
    """Its scores are those of its log."""
    argv = network_argv(small_inputs, "fconv", "vanilla" if prediction == "network" else "bayes", "vae")
    argv += [] if prediction == "network" else ["--draws", "30", "--logvarinit", "-6"]
    root, method = script(file).main(argv).root, Method(file, "", [], prediction)
    found = few_shot.ensemble_score("a", method, [root])
    assert found == pytest.approx(protocol.read_score(method, root), rel=1e-5)


def test_draws_of_dropout(small_inputs, script):
    """Without dropout every draw is the network; with dropout the ensemble of its draws is another prediction."""
    method = Method("train-net.py", "", [], "dropout")
    for p, same in (("0", True), ("0.5", False)):
        argv = [*network_argv(small_inputs, "fconv", "vanilla-do", "vae"), "--do", p, p, "--ens", "20"]
        root = script("train-net.py").main(argv).root
        last = read_rows(root / "train-net.py-logs.csv")[-1]
        assert (last["draws/nll"] == pytest.approx(last["test_nll"], rel=1e-5)) == same
        found = few_shot.ensemble_score("a", method, [root])["nll"]
        assert found == pytest.approx(last["draws/nll"], rel=1e-5 if same else 0.1)
        assert (found == pytest.approx(last["test_nll"], rel=1e-5)) == same


def test_runs_that_a_method_starts_from(trials, monkeypatch, small_inputs):
    """They are trained first, on other classes for tuning, and their directories are in the method's arguments."""
    words = network_argv(small_inputs, "fconv", "vanilla", "xavier")[2:]
    line = f"--data {{data}} {' '.join(words)}"
    monkeypatch.setattr(protocol, "SOURCES", {"net": ("train-net.py", line), "unused": ("train-net.py", "--lr x")})
    shared = f"{' '.join(words)} --init_list pretrained --pretrained {{net}}/model.torch"
    method = Method("train-net.py", shared, ["--lr 1e-9"], "network", tune_data="not-mnist5", epochs=2)
    monkeypatch.setattr(protocol, "METHODS", {"c": method})
    sweeps = protocol.Sweeps(None, "")
    for tuning, source in (("acc", "not-mnist5-rest"), ("", "not-mnist")):
        trials.clear()
        sweeps.train("x", {"c": ["--lr 1e-9"]}, 5 if tuning else 10, [0], [1], tuning)
        (first, root), (second, _) = trials.values()
        assert f"--data {source} " in first.label and f"--pretrained {root}/model.torch" in second.label
        assert second.label.endswith(" --data not-mnist5") == bool(tuning)


def test_the_statistics():
    """Over splits, whose seeds are averaged first; the paired interval is scipy's of a t-test on the differences."""
    rng = np.random.default_rng(0)
    values = rng.random((4, 5, 3))
    as_scores = [[{"acc": x, "nll": 1 - x, "ece": 0.1} for x in own.ravel()] for own in values]
    names = ("a", "b", "ensemble of 5: b", "ensemble of 5: a")
    rows = few_shot.result_rows(50, dict(zip(names, (protocol.by_split(s, 5) for s in as_scores), strict=True)))
    for i, (row, own) in enumerate(zip(rows, values, strict=True)):
        assert row["acc"] == pytest.approx(own.mean()) and row["acc_se"] == pytest.approx(stats.sem(own.mean(1)))
        assert row["ece_se"] == pytest.approx(0) and row["nll"] == pytest.approx(1 - own.mean())
        if i in (0, 2):
            assert row["acc_difference"] == row["nll_difference_se"] == 0
            continue
        test = stats.ttest_rel(values[i - 1].mean(1), own.mean(1))
        low, high = test.confidence_interval()
        for name, sign in (("acc", 1), ("nll", -1)):
            found, error = (row[f"{name}_{kind}"] for kind in ("difference", "difference_se"))
            assert found / error == pytest.approx(sign * test.statistic)
            assert row[f"{name}_difference_interval"] == pytest.approx((high - low) / 2)


def test_every_method_has_the_same_budget_and_valid_settings(script):
    """Settings, and epochs of what is trained as a whole; a classifier on fixed features may have more."""
    assert len({len(method.settings) for method in few_shot.METHODS.values()}) == 1
    whole = [method for method in few_shot.METHODS.values() if "--rfe 1" not in method.shared]
    assert all(method.epochs == 300 for method in whole)
    data = {"cifar10": "cifar", "cifar100": "cifar100"}
    assert [whole[0].epochs_of(n) for n in (50, 256, 257, 500, 1000)] == [300, 300, 150, 150, 75]
    for method in few_shot.METHODS.values():
        assert len(set(method.settings)) == len(method.settings) and method.prediction in PREDICTIONS
        for setting in method.settings:
            shared = method.shared.format(**dict.fromkeys(SOURCES, "x"))
            line, prediction = f"{shared} {setting} --num_examples 50", PREDICTIONS[method.prediction]
            args = script(method.script).parse(f"{line} --data {method.data}".format(**data).split())
            tuned = f"{line} --data {method.tune_data} {prediction.tuning}"
            tuning = script(method.script).parse(tuned.format(**data).split())
            if method.prediction in ("draws", "dropout"):
                samples = [getattr(found, "draws", None) or found.ens for found in (args, tuning)]
                assert samples == [prediction.samples, prediction.samples / 3]
    for name, line in SOURCES.values():
        script(name).parse(line.format(data="not-mnist").split())


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
