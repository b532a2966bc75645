"""Runs as tables, pages and TensorBoard's events: numbers against formulas written out here, and hostile files."""

import base64
import csv
import importlib.util
import io
import math
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import yaml
from filelock import FileLock
from PIL import Image

import runs
import utils
from experiments import collect, page, sweep

SMALL = ["--data", "not-mnist", "--hid_dim", "3", "4", "--device", "cpu", "--bs", "16"]


def read_log(root):
    (file,) = root.glob("*-logs.csv")
    with open(file) as lines:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(lines)]


@pytest.fixture
def without_package(monkeypatch):
    """`without_package("ray")`: as if it were not installed."""
    find = importlib.util.find_spec

    def hide(name):
        monkeypatch.setattr(importlib.util, "find_spec", lambda n, *more: None if n == name else find(n, *more))

    return hide


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def read_events(root):
    """By column of the log, the steps and values in a run's event files."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    # Without the repair of doubled steps that TensorBoard's own reader makes.
    events = event_accumulator.EventAccumulator(str(root), {"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected_events(root):
    rows = read_log(root)
    return {k: [(row["t"], np.float32(row[k])) for row in rows] for k in rows[0] if k != "t"}


@pytest.mark.parametrize(
    "name, options",
    [
        ("train-net.py", [*SMALL, "--epochs", "3", "--eval_freq", "2"]),
        ("train-net.py", [*SMALL, "--epochs", "2", "--fastconv", "1", "--eval_freq", "3"]),
        ("train-bnn.py", [*SMALL, "--epochs", "2", "--ens", "2"]),
        ("train-vae.py", ["--kernel_dim", "5", "--num_epochs", "2", "--data_dir", "{}"]),
    ],
)
def test_events_are_the_log(name, options, script, sandbox):
    for part in ("train", "test"):
        np.save(sandbox / f"{part}.npy", np.random.default_rng(0).standard_normal((40, 1, 5, 5)).astype(np.float32))
    run = script(name).main([*(word.format(sandbox) for word in options), "--tensorboard", "1"])
    assert read_events(run.root) == expected_events(run.root)


def test_events_after_a_continued_run(script, sandbox, monkeypatch):
    """Rows between the last checkpoint and the kill are there once."""
    argv = [*SMALL, "--epochs", "6", "--checkpoint_freq", "2", "--tensorboard", "1"]
    epochs = runs.Run.epochs

    def die(self, total):
        for epoch in epochs(self, total):
            yield epoch
            if epoch == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(runs.Run, "epochs", die)
    with pytest.raises(SystemExit):
        script("train-net.py").main(argv)
    monkeypatch.setattr(runs.Run, "epochs", epochs)
    (root,) = (sandbox / "logs" / "exman-train-net.py" / "runs").iterdir()
    assert len(read_events(root)["test_acc"]) == 5
    script("train-net.py").main(["--continue", str(root)])
    assert [row["t"] for row in read_log(root)] == [1, 2, 3, 4, 5, 6]
    assert read_events(root) == expected_events(root)
    script("train-net.py").main(["--continue", str(root)])  # of a run that is done
    assert read_events(root) == expected_events(root)
    assert len(list(root.glob("events.*"))) == 1


def test_no_events_where_not_asked_for(script, sandbox):
    run = script("train-net.py").main([*SMALL, "--epochs", "1"])
    assert not list(run.root.glob("events.*"))


def test_events_without_the_package(script, sandbox, without_package, capsys):
    without_package("tensorboard")
    with pytest.raises(SystemExit) as stop:
        script("train-net.py").main([*SMALL, "--tensorboard", "1"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and not (sandbox / "logs").exists()
    assert "--tensorboard: found no package tensorboard" in err and "pip install -r requirements-sweep.txt" in err
    script("train-net.py").main([*SMALL, "--epochs", "1"])


# --- tables -----------------------------------------------------------------------------------------------------------

HOSTILE = "</td><script>alert(1)</script>$\\frac{$-->\x1b[31m\n'\"&<b>"


@pytest.fixture
def write_run(sandbox):
    """`write_run("train-net.py", 1, rows, **arguments)` is a run directory in the true format."""

    def write(script, number, rows, state="finished", **arguments):
        root = sandbox / "logs" / f"exman-{script}" / "runs" / f"{number:06d}-2026-01-01-00-00-00"
        root.mkdir(parents=True)
        params = {**arguments, "root": str(root), "time": "2026-01-01", "id": number, "environment": {"script": script}}
        (root / "params.yaml").write_text(yaml.safe_dump(params))
        if state:
            (root / "state.yaml").write_text(yaml.safe_dump({"state": state, "epoch": 2, "epochs": 2}))
        with open(root / f"{script}-logs.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["t"])
            writer.writeheader()
            writer.writerows(rows)
        return root

    return write


def rows(*accuracies):
    return [{"t": t, "test_nll": 1 - a, "KL": a, "ens[2]_test_acc": a, "lr": 0.1} for t, a in enumerate(accuracies, 1)]


def collected(argv, out):
    """The rows of both tables, as text."""
    collect.main([*map(str, argv), "--out", str(out)])
    texts = ((out / f"{name}.csv").read_text() for name in ("runs", "groups"))
    return [list(csv.DictReader(io.StringIO(text, newline=""))) for text in texts]


def assert_parquet_is_csv(folder):
    for name in ("runs", "groups"):
        table, text = pd.read_parquet(folder / f"{name}.parquet"), pd.read_csv(folder / f"{name}.csv", dtype=str)
        assert list(table.columns) == list(text.columns) and len(table) == len(text) > 0
        for column in table:
            for value, word in zip(table[column], text[column], strict=True):
                if pd.isna(value) or value == "":
                    assert pd.isna(word)
                elif isinstance(value, float):
                    assert float(word) == value
                else:
                    assert word == str(value)


def test_the_table_of_runs(write_run, sandbox):
    write_run("train-net.py", 1, [{"t": 1, "loss": 0.5, "l2_norm": 3}, {"t": 5, "loss": 0.75, "l2_norm": 2}], seed=1)
    write_run("train-bnn.py", 1, rows(0.5, 0.75, 0.625), hid_dim=[3, 4], num_examples=None, var=0.5, tmp=False)
    write_run("train-bnn.py", 2, rows(0.5), "stopped", hid_dim=[], num_examples=2**70, var="train", tmp=True)
    write_run("train-vae.py", 1, [{"t": 1, "test_elbo": 2.5, "test_ll": 4, "test_kl": 1}], None, num_examples=50)
    table, _ = collected([sandbox / "logs"], sandbox / "out")
    assert [(r["script"], r["run"][:6], r["state"]) for r in table] == [
        ("train-bnn.py", "000001", "finished"),
        ("train-bnn.py", "000002", "stopped"),
        ("train-net.py", "000001", "finished"),
        ("train-vae.py", "000001", ""),
    ]
    first, second, net, vae = table
    expected = {"last_t": 3, "last_ens[2]_test_acc": 0.625, "best_ens[2]_test_acc": 0.75, "best_test_nll": 0.25}
    assert {k: float(first[k]) for k in expected} == expected and float(first["last_test_nll"]) == 0.375
    assert first["hid_dim"] == "3 4" and first["num_examples"] == "" and first["var"] == "0.5"
    assert second["num_examples"] == str(2**70) and second["var"] == "train" and second["tmp"] == "True"
    assert float(net["best_loss"]) == 0.5 and float(net["last_loss"]) == 0.75 and net["last_KL"] == net["hid_dim"] == ""
    assert float(vae["best_test_elbo"]) == 2.5 and float(vae["best_test_ll"]) == 4 and vae["num_examples"] == "50"
    assert not {"best_KL", "best_lr", "best_t", "best_l2_norm", "best_test_kl"} & table[0].keys()
    assert_parquet_is_csv(sandbox / "out")


def test_groups_against_formulas(write_run, sandbox, capsys):
    values = {10: [0.5, 0.75, 0.625, 0.875], 20: [0.25]}
    number = 0
    for n, accuracies in values.items():
        for seed, accuracy in enumerate(accuracies):
            number += 1
            write_run("train-bnn.py", number, rows(0.125, accuracy), num_examples=n, seed=seed, prior_list=["sn", "sn"])
    write_run("train-bnn.py", 98, rows(0.125), "stopped", num_examples=20, seed=9, prior_list=["sn", "sn"])
    write_run("train-bnn.py", 99, rows(0.125, 0.5), num_examples=20, seed=0, prior_list=["vae", "vae"], name="x")
    by = ["--by", "num_examples", "prior_list"]
    _, groups = collected([sandbox / "logs", *by], sandbox / "out")
    found = {(g["num_examples"], g["prior_list"]): g for g in groups if g["metric"] == "last_ens[2]_test_acc"}
    assert list(found) == [("10", "sn sn"), ("20", "sn sn"), ("20", "vae vae")]

    x = values[10]
    mean = sum(x) / 4
    std = math.sqrt(sum((v - mean) ** 2 for v in x) / 3)
    half = 3.182446305284263 * std / 2  # the 0.975 quantile of Student's t with 3 degrees of freedom
    group = {k: float(found["10", "sn sn"][k]) for k in ("n", "mean", "std", "low", "high")}
    expected = {"n": 4, "mean": mean, "std": std, "low": mean - half, "high": mean + half}
    assert group == pytest.approx(expected, rel=1e-12)
    assert scipy.stats.t.interval(0.95, 3, mean, scipy.stats.sem(x)) == pytest.approx((group["low"], group["high"]))
    single = found["20", "sn sn"]
    assert (single["n"], single["mean"], single["std"], single["low"], single["high"]) == ("1", "0.25", "", "", "")
    out, err = capsys.readouterr()
    assert "1 runs are not finished" in err and "repeat" not in err and "last_ens[2]_test_acc" in out
    assert_parquet_is_csv(sandbox / "out")

    write_run("train-bnn.py", 100, rows(0.125, 0.5), num_examples=20, seed=0, prior_list=["vae", "vae"], name="y")
    collected([sandbox / "logs", *by], sandbox / "out")
    assert "1 runs repeat the arguments of another" in capsys.readouterr().err


def test_states_of_true_runs(script, sandbox, monkeypatch):
    """A killed run says it is running, and nobody holds its lock."""
    argv = [*SMALL, "--epochs", "2"]
    script("train-net.py").main(argv)
    monkeypatch.setattr(runs, "STATE_EVERY", 0.0)
    write = runs.Run._write_state
    monkeypatch.setattr(
        runs.Run, "_write_state", lambda self, state, total: state == "finished" or write(self, state, total)
    )
    killed = script("train-net.py").main(argv).root
    running = script("train-net.py").main(argv).root
    with FileLock(running / ".lock"):
        table, _ = collected([], sandbox / "out")
    assert [row["state"] for row in table] == ["finished", "killed", "running"]
    assert collected([killed], killed / "out")[0][0]["run"] == killed.name


def test_a_sweep(write_run, sandbox, capsys):
    """Its trials' runs alone, and not those that have none yet."""
    trials = sweep.make_trials(sweep.find_script("train-net.py"), [("--seed", ["1..3"])], ["--epochs", "1"])
    sweep.write_sweep("some", trials)
    folder = sandbox / "logs" / "sweeps" / "some"
    for number, trial in enumerate(trials[:2], 1):
        root = write_run("train-net.py", number, [{"t": 1, "test_acc": 0.5}], seed=number)
        trial.write({"state": "finished", "root": str(root), "attempts": 1, "error": ""})
    write_run("train-net.py", 7, [{"t": 1, "test_acc": 0.5}], seed=7)
    collect.main([str(folder)])
    with open(folder / "collected" / "runs.csv") as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["1", "2"]
    assert "1 of 3 trials have no run yet" in capsys.readouterr().err


def test_damaged_runs_are_named_and_left_out(write_run, sandbox, capsys):
    good = [{"t": 1, "test_acc": 0.5}]
    write_run("train-net.py", 1, good, seed=1)
    damage = {
        2: ("params.yaml", b"!!python/object/apply:os.mkdir [evil]"),
        3: ("params.yaml", None),
        4: ("train-net.py-logs.csv", None),
        5: ("train-net.py-logs.csv", b"t,test_acc\n"),
        6: ("train-net.py-logs.csv", b"t,test_acc\n1,x\n"),
        7: ("train-net.py-logs.csv", b"t,test_acc\n1,nan\n"),
        8: ("train-net.py-logs.csv", b"t,test_acc\ninf,0.5\n"),
        9: ("train-net.py-logs.csv", b"t,test_acc\n1,0.5,7\n"),
        10: ("train-net.py-logs.csv", b"\x00\xff"),
        11: ("state.yaml", b"state: [x]\n"),
        12: ("state.yaml", b"state: lost\n"),
    }
    for number, (name, content) in damage.items():
        file = write_run("train-net.py", number, good, seed=number) / name
        file.unlink() if content is None else file.write_bytes(content)
    table, _ = collected([sandbox / "logs"], sandbox / "out")
    err = capsys.readouterr().err
    assert [row["seed"] for row in table] == ["1"]
    assert len(err.splitlines()) == len(damage) and all(f"{number:06d}-" in err for number in damage)


# --- the page ---------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def elements_of(page):
    """Those of a page that holds, and loads, nothing but itself."""
    elements = Elements(page)
    assert not {tag for tag, _ in elements.tags} & {"script", "b", "link", "iframe", "object", "foreignobject"}
    for _, attributes in elements.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert "url(" not in page.replace("url(#", "")
    policy = next(a["content"] for tag, a in elements.tags if tag == "meta" and "content" in a)
    assert policy.startswith("default-src 'none'")
    return elements


@pytest.mark.parametrize("by", [[], ["--by", collect.text(HOSTILE)]])
def test_a_page_of_hostile_texts(write_run, sandbox, by):
    """In arguments, their names, columns of the log, names of script, run and layer."""
    layer = '"><script>'
    for number in (1, 2, 3):
        log = [{"t": 1, HOSTILE: 1, "test_acc": 2}]
        root = write_run("train-net.py", number, log, **{HOSTILE: HOSTILE * (number % 2), "name": HOSTILE})
        (root / "train-net.py-logs.csv").rename(root / "<script>-logs.csv")
        torch.save({layer: torch.ones(2, 1, 3, 3)}, root / "init_kernels.torch")
        torch.save({f"{layer}.weight": torch.ones(2, 1, 3, 3)}, root / "model.torch")
        root.rename(root.with_name(f"{number}<script>alert(1)<script>"))
    collect.main(["--html", "--out", str(sandbox / "out"), *by])
    page = (sandbox / "out" / "page.html").read_text()
    elements = elements_of(page)
    assert HOSTILE.split("\x1b")[0] in elements.text and "1<script>alert(1)<script>" in elements.text
    assert any(a.get("alt", "").startswith(layer) for _, a in elements.tags) and f"{layer}: 2 kernels" in elements.text
    assert "\x1b" not in page and "\x1b" not in (sandbox / "out" / "runs.csv").read_text()


def test_the_page_of_true_runs(script, sandbox, capsys):
    argv = [*SMALL, "--epochs", "2", "--lr", "0.01"]
    nets = [script("train-net.py").main([*argv, "--seed", str(seed)]).root for seed in (1, 2)]
    script("train-bnn.py").main([*argv, "--ens", "2"])
    (nets[0] / "model.torch").write_bytes(b"damaged")
    collect.main(["--html", "--by", "seed", "--out", str(sandbox / "out")])
    assert "model.torch" in capsys.readouterr().err
    elements = elements_of((sandbox / "out" / "page.html").read_text())
    tags = [tag for tag, _ in elements.tags]
    assert tags.count("svg") == 2 and tags.count("img") == 4  # two scripts; two convs of two networks
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(a["src"].split(",")[1]))) for t, a in elements.tags if t == "img"
    ]
    assert all(picture.format == "PNG" and picture.width > 200 for picture in pictures)
    assert (
        "features.conv2: 12 kernels" in elements.text and "seed 2" in elements.text and "hid_dim 3 4" in elements.text
    )
    with open(sandbox / "out" / "runs.csv") as file:
        for row in csv.DictReader(file):
            name = "test_acc" if row["script"] == "train-net.py" else "ens[2]_test_acc"
            assert f"{float(row[f'last_{name}']):.5g}" in elements.text


@pytest.mark.parametrize("name, layer", [("train-net.py", "weight"), ("train-bnn.py", "mean.weight")])
def test_kernels_before_and_after(name, layer, script, sandbox, monkeypatch):
    """The same kernels of the untrained network, made here from the seed, and of the model; at most 64 of a layer."""
    argv = [*SMALL, "--hid_dim", "4", "32", "--epochs", "1", "--lr", "0.01"]
    run = script(name).main(argv if name == "train-net.py" else [*argv, "--ens", "2"])
    (record,) = collect.read_runs([run.root])
    model = torch.load(run.root / "model.torch", weights_only=True)
    utils.seed_all(42)
    args = script(name).parse(argv)
    net = utils.NETWORKS["fconv"](args)
    utils.init_network(net, args, ())
    for conv, (before, after) in page.kernels(record).items():
        start, end = net.state_dict()[f"{conv}.{layer}"], model[f"{conv}.{layer}"]
        n = start.shape[0] * start.shape[1]
        index = [i * (n - 1) // 63 for i in range(64)] if n > 64 else list(range(n))
        torch.testing.assert_close(before[:, 0], start.flatten(0, 1)[index], rtol=0, atol=0)
        torch.testing.assert_close(after[:, 0], end.flatten(0, 1)[index], rtol=0, atol=0)
        assert not torch.equal(before, after)


def test_kernels_of_another_network(script, sandbox, capsys):
    first, other = (
        script("train-net.py").main([*SMALL, "--hid_dim", "3", n, "--epochs", "1"]).root for n in ("4", "5")
    )
    shutil.copy(other / "init_kernels.torch", first)
    collect.main([str(first), "--html"])
    assert "of different networks" in capsys.readouterr().err
    assert "<img" not in (first / "collected" / "page.html").read_text()


def test_without_pandas(sandbox, write_run, without_package, capsys):
    write_run("train-net.py", 1, [{"t": 1, "test_acc": 0.5}])
    without_package("pyarrow")
    with pytest.raises(SystemExit) as stop:
        collect.main([])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "collect: found no package pyarrow" in err and len(err.splitlines()) == 1
    assert not (sandbox / "logs" / "collected").exists()
