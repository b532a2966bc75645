"""Predictions of a run on folders, files and data sets: tables, scores, uncertainties, pictures and the export."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import utils
from experiments import predict
from experiments.predictions import Predictions
from experiments.subsets import write_npz
from models.bayes import set_mode
from models.metrics import ensemble_log_probs, scores
from tests.conftest import COLORS, network_argv


@pytest.fixture
def run(color_folder, script, sandbox, vae_folder, capsys):
    """A Bayesian network with a noisy posterior that has learnt from the folder of colors."""
    options = "--hid_dim 2 3 --epochs 2 --bs 8 --ens 2 --prior vae"
    argv = ["--data", str(color_folder), *options.split()]
    argv += [
        "--vae_list",
        vae_folder(7),
        vae_folder(5),
        "--logvarinit",
        "-2",
        "--classifier_prior",
        "sn",
        "--device",
        "cpu",
    ]
    root = script("train-bnn.py").main(argv).root
    capsys.readouterr()
    return root


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_folder_that_a_run_learnt_from(run, color_folder, tmp_path, capsys):
    """Its test images are predicted, by the same draws of the weights as in Python."""
    predict.main([str(run), str(color_folder), "--out", str(tmp_path / "p.csv"), "--samples", "5"])
    out, rows = capsys.readouterr().out, table(tmp_path / "p.csv")
    net, params = utils.load_network(run)
    _, test = utils.load_run_data(params)
    log_p = utils.predict_log_probs(net, test, "weights", 5, 500)
    p = ensemble_log_probs(log_p).exp().numpy()
    assert list(rows[0]) == [
        "image",
        "label",
        "class",
        "entropy",
        "aleatoric",
        "mutual_information",
        *(f"p_{c}" for c in COLORS),
    ]
    assert [row["label"] for row in rows] == [list(COLORS)[i] for i in test.labels]
    assert all((color_folder / row["image"]).is_file() and row["image"].startswith(row["label"]) for row in rows)
    found = np.array([[float(row[f"p_{c}"]) for c in COLORS] for row in rows])
    np.testing.assert_allclose(found, p, atol=1e-6)
    assert [row["class"] for row in rows] == [list(COLORS)[i] for i in p.argmax(1)]
    entropy = [stats.entropy(row) for row in p]
    aleatoric = np.mean([[stats.entropy(row) for row in draw.exp().numpy()] for draw in log_p], 0)
    for name, values in (("entropy", entropy), ("aleatoric", aleatoric), ("mutual_information", entropy - aleatoric)):
        np.testing.assert_allclose([float(row[name]) for row in rows], values, atol=1e-5)
    printed = [float(x) for x in out.splitlines()[-1].removeprefix(str(run)).split()]
    assert printed == pytest.approx(list(scores(torch.from_numpy(p).log(), test.labels).values()), abs=1e-4)
    assert "to label next" not in out  # they are labelled
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_an_ensemble(run, color_folder, script, tmp_path, capsys):
    """The mean of the networks' probabilities, however many draws each has; a network twice has other draws."""
    argv = ["--data", str(color_folder), "--hid_dim", "2", "3", "--epochs", "1", "--bs", "8", "--device", "cpu"]
    roots = [str(run), str(run), str(script("train-net.py").main(argv).root)]
    capsys.readouterr()
    predict.main([*roots, str(color_folder), "--out", str(tmp_path / "p.csv"), "--samples", "5", "--seed", "3"])
    lines, rows = capsys.readouterr().out.splitlines()[-4:], table(tmp_path / "p.csv")
    nets, params = zip(*(utils.load_network(root) for root in roots), strict=True)
    test = utils.load_run_data(params[0])[1]
    kinds = (("weights", 5, 3), ("weights", 5, 4), ("det", 1, 5))  # with the seed
    draws = [
        utils.predict_log_probs(net, test, mode, samples, 500, seed=seed)
        for net, (mode, samples, seed) in zip(nets, kinds, strict=True)
    ]
    p = np.mean([own.exp().mean(0).numpy() for own in draws], 0)
    np.testing.assert_allclose([[float(row[f"p_{c}"]) for c in COLORS] for row in rows], p, atol=1e-6)
    aleatoric = np.mean([np.mean([stats.entropy(d.exp().numpy(), axis=1) for d in own], 0) for own in draws], 0)
    expected = stats.entropy(p, axis=1) - aleatoric
    np.testing.assert_allclose([float(row["mutual_information"]) for row in rows], expected, atol=1e-5)
    assert expected.max() > 1e-3
    log_p = [*(ensemble_log_probs(own) for own in draws), torch.from_numpy(p).log()]
    for line, name, own in zip(lines, [*roots, "ensemble of 3"], log_p, strict=True):
        printed = [float(x) for x in line.removeprefix(name).split()]
        assert printed == pytest.approx(list(scores(own, test.labels).values()), abs=1e-4)


@pytest.mark.parametrize(
    "options, more, message",
    [
        (["--data_split_seed", "1"], [], "RUN_DIR: found runs with the test images 0.2 by seed 1, 0.2 by seed 42 of "),
        (
            ["--model", "cifarnetnew", "--model_size", "0.04"],
            [],
            "RUN_DIR {}: found images of (3, 32, 32), expected (1, ",
        ),
        ([], ["--export", "m.pt2"], "--export: found 2 runs, expected one"),
    ],
)
def test_networks_that_do_not_predict_together(options, more, message, run, color_folder, script, capsys):
    size = [] if "--model" in options else ["--hid_dim", "2", "3"]
    other = script("train-net.py").main(["--data", str(color_folder), "--epochs", "1", *size, *options]).root
    with pytest.raises(SystemExit) as stop:
        predict.main([str(run), str(other), str(color_folder), *more])
    assert stop.value.code == 2 and message.format(other) in capsys.readouterr().err


def test_a_folder_that_has_changed(run, color_folder, tmp_path, capsys):
    """Another split would put images that the run learnt from among its test images; a link is the same folder."""
    with pytest.raises(SystemExit):
        predict.main([str(run), str(tmp_path / "nothing")])
    assert "nothing: found no such folder, expected one or more images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main([str(run), str(color_folder / "red")])
    assert "found images that the run learnt from, expected others" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(color_folder)
    predict.main([str(run), str(tmp_path / "link"), "--out", str(tmp_path / "p.csv"), "--samples", "2"])
    assert len(table(tmp_path / "p.csv")) == 6
    shutil.copy(color_folder / "red" / "0.png", color_folder / "red" / "99.png")
    with pytest.raises(SystemExit) as stop:
        predict.main([str(run), str(color_folder)])
    assert stop.value.code == 2 and "found other images than those of the run" in capsys.readouterr().err


def test_a_copy_of_the_folder(run, color_folder, tmp_path):
    """Only what the run did not learn from is predicted, as of the folder itself; of other images all are."""
    copy, out = tmp_path / "copy", tmp_path / "p.csv"
    shutil.copytree(color_folder, copy)
    found = []
    for folder in (color_folder, copy):
        predict.main([str(run), str(folder), "--out", str(out), "--samples", "2"])
        found.append(table(out))
    assert found[0] == found[1] and len(found[0]) == 6
    (copy / "red" / "0.png").unlink()
    predict.main([str(run), str(copy), "--out", str(out), "--samples", "2"])
    assert len(table(out)) == 29
    for file in (copy / "red").iterdir():
        file.unlink()
    predict.main([str(run), str(copy), "--out", str(out), "--samples", "2"])
    assert len(table(out)) == 20


def test_a_run_without_test_images(color_folder, script, sandbox, tmp_path, capsys):
    (tmp_path / "two").mkdir()
    shutil.move(color_folder, tmp_path / "two" / "train")
    argv = ["--data", str(tmp_path / "two"), "--hid_dim", "2", "3", "--epochs", "1", "--device", "cpu"]
    root = script("train-net.py").main(argv).root
    learnt = "found images that the run learnt from, expected others"
    for folder, message in (("two", "found no test images"), ("two/train", learnt), ("two/train/red", learnt)):
        with pytest.raises(SystemExit) as stop:
            predict.main([str(root), str(tmp_path / folder)])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_unlabelled_images(run, tmp_path, capsys):
    (tmp_path / "new" / "red").mkdir(parents=True)
    for name, color in (("b.png", "red"), ("a.jpg", "gold"), ("red/c.png", "red")):
        Image.new("RGB", (50, 40), color).save(tmp_path / "new" / name)
    (tmp_path / "new" / "broken.png").write_bytes(b"x")
    predict.main([str(run), str(tmp_path / "new"), "--out", str(tmp_path / "p.csv"), "--samples", "3"])
    rows = sorted(table(tmp_path / "p.csv")[:2], key=lambda row: -float(row["mutual_information"]))
    assert (
        f"largest mutual information, to label next: {rows[0]['image']}, {rows[1]['image']}\n"
        in capsys.readouterr().out
    )
    predict.main([str(run), str(tmp_path / "new"), "--out", str(tmp_path / "p.csv"), "--samples", "0"])
    out, err = capsys.readouterr()
    rows = table(tmp_path / "p.csv")
    assert [(row["image"], row["label"]) for row in rows] == [("a.jpg", ""), ("b.png", ""), ("red/c.png", "red")]
    assert "1 images are left out, damaged or of 32-bit pixels: broken.png" in err and "accuracy" in out
    assert all(float(row["mutual_information"]) == 0 for row in rows)
    first, second = sorted(rows[:2], key=lambda row: -float(row["entropy"]))
    assert first["entropy"] != second["entropy"]
    assert f"largest entropy, to label next: {first['image']}, {second['image']}\n" in out
    assert rows[1]["p_red"] == rows[2]["p_red"]


def test_a_data_set(small_inputs, script, tmp_path, capsys):
    """Scores are those of the log: of a deterministic network, of draws of the weights, and of the mean network."""
    net = script("train-net.py").main(network_argv(small_inputs, "fconv", "vanilla", "xavier"))
    argv = [*network_argv(small_inputs, "fconv", "bayes", "vae"), "--prior", "vae", "--reverse", "train", "--ens", "3"]
    bnn = script("train-bnn.py").main([*argv, "--logvarinit", "-3", "--classifier_prior", "sn"])
    capsys.readouterr()
    of_net, of_bnn = net.rows[-1], bnn.rows[-1]
    for run, samples, expected in (
        (net, "3", [of_net["test_acc"], of_net["test_nll"]]),
        (bnn, "3", [of_bnn[f"draws/{score}"] for score in ("acc", "nll", "ece", "brier")]),
        (bnn, "0", [of_bnn["det_test_acc"], *(of_bnn[f"det/{score}"] for score in ("nll", "ece", "brier"))]),
    ):
        argv = [str(run.root), "not-mnist", "--samples", samples, "--seed", str(run.args.seed)]
        predict.main([*argv, "--out", str(tmp_path / "p.csv")])
        found = [float(x) for x in capsys.readouterr().out.splitlines()[-1].removeprefix(str(run.root)).split()]
        assert found[: len(expected)] == pytest.approx(expected, abs=1e-4)
        assert [row["image"] for row in table(tmp_path / "p.csv")] == [str(i) for i in range(10)]


SMALL = "model: fconv\nnet_cfg: vanilla\nhid_dim: [2, 3]\nmodel_size: 1\nn_classes: 10\n"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "params.yaml: found a NoneType"),
        ("model: fconv\n", "params.yaml: found no arguments of a network: KeyError('net_cfg')"),
        ("model: x\n", "found no arguments of a network"),
        (SMALL.replace("[2, 3]", "[99999999, 99999999]") + "data: mnist\n", "model.torch"),
        (SMALL, "params.yaml: found no arguments of a network: KeyError('data')"),
        (SMALL + "data: svhn\n", "found data svhn, expected not-mnist as of "),
    ],
)
def test_what_is_no_run(text, expected, small_inputs, script, capsys):
    """Named after a run; the last one is a run, but on other data."""
    first = script("train-net.py").main(network_argv(small_inputs, "fconv", "vanilla", "xavier")).root
    other = shutil.copytree(first, first.with_name("other"))
    (other / "params.yaml").write_text(text)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        predict.main([str(first), str(other), "not-mnist"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and expected in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("model, net_cfg", [("fconv", "bayes"), ("cifarnet", "vanilla")])
def test_the_export(model, net_cfg, small_inputs, script, tmp_path, capsys):
    """The exported network gives the mean network's logits for another number of images."""
    name = "train-bnn.py" if net_cfg == "bayes" else "train-net.py"
    root = script(name).main(network_argv(small_inputs, model, net_cfg, "vae")).root
    data = "not-mnist" if model == "fconv" else "svhn"
    predict.main(
        [str(root), data, "--out", str(tmp_path / "p.csv"), "--export", str(tmp_path / "m.pt2"), "--samples", "2"]
    )
    net, _ = utils.load_network(root)
    set_mode(net, "det")
    x = utils.load_data(data)[1].batch(torch.arange(7))[0]
    torch.testing.assert_close(torch.export.load(tmp_path / "m.pt2").module()(x), net(x))


def test_uncertainty_of_known_distributions():
    """Samples that agree on a coin have noise alone; samples that are sure of different sides have none."""
    coin, sides = torch.full((4, 1, 2), 0.5).log(), torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).log()
    for log_p, expected in ((coin, (np.log(2), np.log(2), 0)), (sides, (np.log(2), 0, np.log(2)))):
        assert [value.item() for value in Predictions.of_draws(log_p).uncertainty().values()] == pytest.approx(
            expected, abs=1e-6
        )


@pytest.mark.parametrize(
    "data, message",
    [
        ("nothing", "DATA nothing: found no such folder"),
        ("svhn", "DATA svhn: found test images (10, 3, 32, 32)"),
        ("x.npz", "--data x.npz:"),
    ],
)
def test_mistakes(data, message, small_inputs, script, tmp_path, monkeypatch, capsys):
    root = script("train-net.py").main(network_argv(small_inputs, "fconv", "vanilla", "xavier")).root
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        predict.main([str(root), data])
    err = capsys.readouterr().err
    assert (
        stop.value.code == 2
        and message in err
        and len(err.splitlines()) == 1
        and not (tmp_path / "predictions.csv").exists()
    )


def test_a_file_that_has_changed_since_the_run(script, sandbox, capsys):
    """Its test images may be those that the run learnt."""
    train, test = (data[list(range(20))] for data in utils.load_data("not-mnist"))
    file = sandbox / "letters.npz"
    write_npz(file, train, test)
    root = script("train-net.py").main(["--data", str(file), "--hid_dim", "2", "3", "--epochs", "1"]).root
    predict.main([str(root), str(file), "--out", str(sandbox / "p.csv")])
    write_npz(file, test, train)
    with pytest.raises(SystemExit) as stop:
        predict.main([str(root), str(file), "--out", str(sandbox / "p.csv")])
    assert stop.value.code == 2 and "found other images than those of the run" in capsys.readouterr().err
