"""Tables of runs and of groups: numbers against formulas written out here, states, and damaged files."""

import math

import pandas as pd
import pytest
import scipy.stats
from filelock import FileLock

from runs.loop import Run
from tests.conftest import SMALL
from tests.sweeps.conftest import collected


def rows(*accuracies):
    return [{"t": t, "test_nll": 1 - a, "KL": a, "ens[2]_test_acc": a, "lr": 0.1} for t, a in enumerate(accuracies, 1)]


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
    """The state file of a killed run says running, and no process holds the run's lock."""
    script("train-net.py").main(SMALL)
    write = Run._write_state
    monkeypatch.setattr(Run, "_write_state", lambda self, state: state == "finished" or write(self, state))
    killed = script("train-net.py").main(SMALL).root
    running = script("train-net.py").main(SMALL).root
    with FileLock(running / ".lock"):
        table, _ = collected([], sandbox / "out")
    assert [row["state"] for row in table] == ["finished", "killed", "running"]
    assert collected([killed], killed / "out")[0][0]["run"] == killed.name


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
