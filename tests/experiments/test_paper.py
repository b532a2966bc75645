"""The experiments of the paper: curves and accuracies of their runs in tables, figures and the report."""

import numpy as np
import pytest
import torch
from scipy import stats

import utils
from experiments import active, classification, convergence, feature_extraction, paper, protocol, uncertainty
from experiments.methods import METHODS, Method
from runs.errors import UserError
from runs.files import read_yaml
from sweeps import cluster, plots
from tests.conftest import network_argv
from tests.experiments.conftest import REPORT, colour_file, mean_and_spread


@pytest.mark.parametrize("module", [classification, convergence, feature_extraction])
def test_the_scale_smoke(module, run_experiment, monkeypatch):
    """All parts of the scale, from the trainings to the report."""
    monkeypatch.setattr(protocol, "METHODS", {name: row._replace(epochs=1) for name, row in METHODS.items()})
    rows, _ = run_experiment(module, lambda small: module.SCALES["smoke"])
    assert len(rows) > len(module.SCALES["smoke"])


def test_convergence(run_experiment, monkeypatch):
    task = convergence.SCALES["smoke"]["mnist-vae"]._replace(steps=(1, 2))
    draw, drawn = plots.plot_panels, {}
    monkeypatch.setattr(
        plots, "plot_panels", lambda panels, *more, **layout: drawn.update(panels) or draw(panels, *more, **layout)
    )
    rows, logs = run_experiment(
        convergence, lambda small: {"mnist-vae": task._replace(shared=small(task.shared) + " --eval_freq 1")}
    )
    assert [row[:2] for row in rows] == [["initialization", "rate"], *([init, "0.001"] for init in paper.INITS)]
    for row, own in zip(rows[1:], (logs[:2], logs[2:4], logs[4:]), strict=True):
        for step, cell in ((1, row[2]), (2, row[4])):
            values = [next(r["test_elbo"] for r in log if r["t"] == step) for log in own]
            assert mean_and_spread(cell) == pytest.approx([np.mean(values), np.std(values, ddof=1)], abs=0.06)
    assert rows[1][3::2] == ["", ""]
    assert [(curve.label, curve.x) for curve in drawn[task.ylabel]] == [(init, [2]) for init in paper.INITS]


def test_steps_to_a_target():
    curve = {1: 0.3, 10: 0.95, 20: 0.97, 300: 0.96}
    assert [convergence.first_step(curve, target) for target in (0.96, 0.98)] == [20, float("inf")]
    tasks = convergence.SCALES["laptop"]
    rows = convergence.compare(
        tasks["mnist-vae"], {"xavier": [{200: -150.04, 1000: -94}, {200: -150, 1000: -95}]}, [0.01]
    )[1:]
    assert rows == [["xavier", "0.01", "-150.0 ± 0.0 (2)", "-160", "-94.5 ± 0.7 (2)", "-95"]]
    curves = {"dwp": [curve, {1: 0.96, 300: 0.98}], "filters": [curve, curve], "xavier": [curve, {1: 0.3, 300: 0.9}]}
    headers, *rows = convergence.compare(tasks["mnist"], curves, [0.001, 0.03, 0.1])
    columns = ["at step 300: mean ± std (n)", "published", "steps to 0.96: mean ± std (n)", "published"]
    assert headers == ["initialization", "rate", *columns]
    assert rows == [
        ["dwp", "0.001", "0.970 ± 0.014 (2)", "", "10 ± 13 (2)", "50"],
        ["filters", "0.03", "0.960 ± 0.000 (2)", "", "20 ± 0 (2)", "33"],
        ["xavier", "0.1", "0.930 ± 0.042 (2)", "", "not by 1 of 2", "97"],
    ]


SMALL = feature_extraction.SMALL._replace(shared=f"{feature_extraction.MNIST} --epochs 2 --bs 5")


def test_feature_extraction(run_experiment):
    rows, logs = run_experiment(feature_extraction, lambda small: {"mnist": SMALL})
    assert [row[0] for row in rows] == ["k", "1/16", "1/8"]
    accuracies = np.reshape([log[-1]["test_acc"] for log in logs], (3, 2, 2))  # initialization, scale, seed
    for i, row in enumerate(rows[1:]):
        assert row[1::3] == ["0.001"] * 3
        for own, cell in zip(accuracies[:, i], row[2::3], strict=True):
            assert mean_and_spread(cell) == pytest.approx([own.mean(), own.std(ddof=1)], abs=1e-4)
    assert rows[1][3::3] == ["0.9565", "0.963", "0.9305"]


def test_a_rate_for_each_initialization(run_experiment):
    """The reported runs have the rate whose run with the seed 0 is best on training images that are held out."""
    rates = (1e-9, 0.01)
    part = SMALL._replace(rates=rates)
    rows, logs = run_experiment(feature_extraction, lambda small: {"mnist-rates": part})
    found = np.reshape([log[-1]["test_acc"] for log in logs[:12]], (3, 2, 2))  # initialization, scale, rate
    chosen = [[max(zip(own, rates, strict=True))[1] for own in scales] for scales in found]
    assert [[float(row[1 + 3 * i]) for row in rows[1:]] for i in range(3)] == chosen
    used = [2 * log[-1]["lr"] for log in logs[12:]]  # the second of two epochs has half of the rate
    assert used == [rate for own in chosen for rate in own for _ in part.seeds]


def test_images_that_are_held_out(run_experiment, sandbox):
    """A rate is chosen on training images alone, each held out or to learn from."""
    run_experiment(feature_extraction, lambda small: {"mnist-rates": SMALL._replace(rates=(0.01, 0.1))})
    (file,) = sandbox.glob("logs/held-out/*.npz")
    own = utils.load_data(str(file))
    train, _ = utils.load_data("mnist")
    together = torch.cat([part.images for part in own]).flatten(1)
    assert sorted(together.tolist()) == sorted(train.images.flatten(1).tolist())
    assert [len(part.labels) for part in own] == [40, 20]
    for params in map(read_yaml, sandbox.glob("logs/exman-train-net.py/runs/*/params.yaml")):
        assert params["data"] == (str(file) if params["seed"] == 0 else "not-mnist")


def test_the_best_of_all_evaluations_and_a_rate_that_diverged(sandbox, tmp_path, monkeypatch):
    roots = [tmp_path / name for name in "abc"]
    for root, elbos in zip(roots, ((-90, -80), (-80, -84), (-85, -85)), strict=True):
        root.mkdir()
        rows = "".join(f"{10 * t},{elbo}\n" for t, elbo in enumerate(elbos))
        (root / "train-image-vae.py-logs.csv").write_text(f"t,test_elbo\n{rows}")
    experiment = paper.parse("convergence", "", convergence.SCALES, ["--scale", "smoke"])
    monkeypatch.setattr(cluster, "run_sweep", lambda name, trials, *more: [*roots[:2], None, None, roots[2], None])
    monkeypatch.setattr(paper, "held_out", lambda *more: "held-out.npz")
    part = convergence.IMAGE_VAE._replace(rates=(1, 2, 3))
    assert paper.choose_rates(experiment, "x", part, ["--epochs 1", "--epochs 2"]) == ([2, 2], roots)
    monkeypatch.setattr(cluster, "run_sweep", lambda name, trials, *more: [roots[0], roots[0], None, None, None, None])
    assert paper.choose_rates(experiment, "x", part._replace(rates=(1, 2)), ["--epochs 1"])[0] == [2]
    with pytest.raises(UserError, match=r"--parts x: the loss became .* of: --epochs 2"):
        paper.choose_rates(experiment, "x", part, ["--epochs 1", "--epochs 2"])


def test_classification(run_experiment, small_inputs, sandbox, monkeypatch):
    shape = network_argv(small_inputs, "fconv", "vanilla", "vae")[2:]
    methods = {
        "l2": Method("train-net.py", " ".join(shape), ["--lr 1e-9", "--lr 0.1"], "network", epochs=2),
        "frozen": Method("train-net.py", f"{' '.join(shape)} --rfe 1", ["--lr 0.01"], "network", epochs=2),
    }
    monkeypatch.setattr(protocol, "METHODS", methods)
    bnn = " ".join([*network_argv(small_inputs, "fconv", "bayes", "vae")[2:], "--ens 10"])
    published = {"sn": ("train-bnn.py", bnn, classification.ENSEMBLE)}
    monkeypatch.setattr(classification, "as_published", lambda target: published)
    ours = classification.Ours({10: (0, 1)}, (1, 2), ("l2", "frozen"), (7,), 10)
    parts = {
        "ours": ours,
        "published": classification.Theirs({10: (0, 1)}, methods=("sn",)),
        "published-dwp": classification.Theirs({10: (0, 1, 2)}, methods=("sn",)),
    }
    rows, logs = run_experiment(classification, lambda small: parts)
    assert rows[0][2] == "test accuracy: mean ± standard error (n)"
    assert [row[:2] for row in rows] == [
        ["method", "images"],
        ["l2", "10"],
        ["frozen", "10"],
        ["method", "images"],
        ["sn", "10"],
        ["method", "images"],
        ["sn", "10"],
    ]
    bnns, nets = logs[:3], logs[3:]  # both parts share two
    tuning, rest = nets[:3], nets[3:]
    assert [len(tuning), len(rest)] == [3, 8]
    best = max(tuning[:2], key=lambda log: log[-1]["test_acc"])
    assert {log[-1]["lr"] for log in rest[:4]} == {best[-1]["lr"]}
    assert "\n14 runs, " in (sandbox / "out" / "classification.md").read_text()
    by_method = np.reshape([log[-1]["test_nll"] for log in rest], (2, 2, 2)).mean(2)  # method, split
    for row, own in zip(rows[1:3], by_method, strict=True):
        assert mean_and_spread(row[3]) == pytest.approx([own.mean(), own.std(ddof=1) / 2**0.5], abs=6e-4)
    accuracies = np.reshape([log[-1]["test_acc"] for log in rest], (2, 2, 2)).mean(2)
    difference, half = map(float, rows[2][5].split(" ± "))
    paired = accuracies[0] - accuracies[1]
    assert difference == pytest.approx(paired.mean(), abs=6e-5)
    assert half == pytest.approx(stats.t.ppf(0.975, 1) * paired.std(ddof=1) / 2**0.5, abs=6e-5)
    assert rows[1][5] == rows[4][5] == ""
    for row, part in ((rows[4], bnns[:2]), (rows[6], bnns)):
        own = np.array([log[-1]["ens[10]_test_acc"] for log in part])
        expected = [own.mean(), own.std(ddof=1) / len(own) ** 0.5]
        assert mean_and_spread(row[2], len(own)) == pytest.approx(expected, abs=6e-4)


def test_classification_of_colour_images(run_experiment, small_inputs, sandbox, monkeypatch):
    """Settings are chosen on ten classes of CIFAR-100."""
    files = {name: colour_file(sandbox / f"{name}.npz", n) for name, n in (("cifar10", 10), ("cifar100", 100))}
    shape = " ".join(network_argv(small_inputs, "cifarnetnew", "vanilla", "vae")[2:])
    own = Method("train-net.py", shape, ["--lr 1e-9", "--lr 0.1"], "network", data="{cifar10}", tune_data="{cifar100}")
    monkeypatch.setattr(protocol, "METHODS", {"l2-colour": own._replace(epochs=2)})
    monkeypatch.setattr(classification, "require_files", lambda files: None)
    part = classification.Ours({50: (0, 1)}, (1, 2), ["l2-colour"], (7,), 20, classification.CIFAR10)
    options = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    options += ["--parts", "ours-cifar10"]
    rows, logs = run_experiment(classification, lambda small: {"ours-cifar10": part}, *options)
    assert rows[1][:2] == ["l2-colour", "50"] and len(logs) == 2 + 4
    by_split = np.reshape([log[-1]["test_nll"] for log in logs[2:]], (2, 2)).mean(1)
    assert mean_and_spread(rows[1][3]) == pytest.approx([by_split.mean(), by_split.std(ddof=1) / 2**0.5], abs=6e-4)
    assert (sandbox / "out" / "settings-cifar10.yaml").exists()
    (tasks,) = (sandbox / "logs" / "classification-smoke" / "tasks").glob("80-*.npz")
    runs = [read_yaml(path)["data"] for path in sorted(sandbox.glob("logs/*/runs/*/params.yaml"))]
    assert runs == [str(tasks)] * 2 + [str(files["cifar10"])] * 4
    with np.load(tasks) as found:
        for name, n in (("train", 8), ("test", 2)):
            images, labels = found[f"{name}_images"], found[f"{name}_labels"]
            assert np.array_equal(np.bincount(labels), [n] * 10) and np.array_equal(images[:, 0, 0, 0], 10 * labels)


@pytest.mark.parametrize("target", [classification.MNIST, classification.CIFAR10])
def test_the_scripts_accept_what_was_published(target, script):
    for file, shared, _ in classification.as_published(target).values():
        args = script(file).parse(f"{shared} --data cifar --num_examples 50".replace("{vaes}", "vaes").split())
        assert args.epochs == 10000 and args.model == {"mnist": "fconv", "cifar10": "cifarnetnew"}[target.name]


def test_the_part_published_with_other_vaes(sandbox, vae_folder, monkeypatch, capsys):
    def run_sweep(name, trials, resources, command, accepted=""):
        raise InterruptedError(trials[0].argv)

    monkeypatch.setattr(cluster, "run_sweep", run_sweep)
    folders = [sandbox / "my vaes" / f"vae{k}x{k}" for k in (7, 5)]
    folders[0].parent.mkdir()
    command = ["--scale", "laptop", "--vaes", str(sandbox / "my vaes"), "--parts"]
    for folder, k in zip(folders, (7, 5), strict=True):
        with pytest.raises(SystemExit) as stop:
            classification.main([*command, "ours", "published"])
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and f"error: --vaes: {folder / 'params.yaml'}: No such file" in line
        folder.symlink_to(vae_folder(k))
    with pytest.raises(InterruptedError) as stop:
        classification.main([*command, "published"])
    assert all(str(folder) in stop.value.args[0] for folder in folders)


MODULES = (active, classification, convergence, feature_extraction, uncertainty)
PARTS = [(m, scale, part) for m in MODULES for scale, parts in m.SCALES.items() for part in parts]


@pytest.mark.parametrize("module, scale, part", PARTS)
def test_the_scripts_accept_all_scales(module, scale, part, sandbox, monkeypatch):
    """The first sweep of each part is made of arguments that the script takes, each trial once."""

    def run_sweep(name, trials, resources, command, accepted=""):
        assert len({trial.key for trial in trials}) == len(trials) > 0
        raise InterruptedError

    monkeypatch.setattr(cluster, "run_sweep", run_sweep)
    for file in (f"{kind}{name}/train.npy" for name in paper.CIFARNET for kind in ("vae", "conv")):
        (sandbox / "cifar" / file).parent.mkdir(parents=True)
        (sandbox / "cifar" / file).touch()
    monkeypatch.setattr(paper, "CIFAR", sandbox / "cifar")
    monkeypatch.setattr(classification, "CIFAR", sandbox / "cifar")
    monkeypatch.setattr(paper, "held_out", lambda *more: "held-out.npz")
    images = utils.DataSet(torch.zeros(1000, 1), torch.arange(1000) % 10)
    for module_of in (paper, classification):
        monkeypatch.setattr(module_of, "load_images", lambda *more: [images, images])
    monkeypatch.setattr(classification, "task_file", lambda experiment: sandbox / "tasks.npz")
    with pytest.raises(InterruptedError):
        module.main(["--scale", scale, "--parts", part])


@pytest.mark.parametrize("module", MODULES)
def test_every_command_has_three_scales(module):
    assert list(module.SCALES) == ["smoke", "laptop", "paper"]


def test_a_part_of_another_scale(sandbox, capsys):
    with pytest.raises(SystemExit) as stop:
        convergence.main(["--scale", "smoke", "--parts", "cifar10"])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert "--parts: found cifar10, expected of mnist-vae, mnist, mnist-rates at this scale" in err


@pytest.mark.parametrize("module", [classification, convergence, feature_extraction])
def test_all_parts_but_those_of_cifar(module, sandbox):
    experiment = paper.parse(module.__name__.split(".")[-1], "", module.SCALES, ["--scale", "laptop"])
    assert experiment.parts == [part for part in module.SCALES["laptop"] if "cifar10" not in part]


@pytest.mark.parametrize(
    "module, part", [(classification, "ours-cifar10"), (convergence, "cifar10"), (feature_extraction, "cifar10")]
)
def test_a_missing_vae_is_named_before_the_first_run(module, part, sandbox, monkeypatch, capsys):
    for own in (paper, classification):
        monkeypatch.setattr(own, "CIFAR", sandbox / "cifar")
    monkeypatch.setattr(cluster, "run_sweep", None)
    with pytest.raises(SystemExit) as stop:
        module.main(["--scale", "laptop", "--parts", part])
    assert stop.value.code == 2 and f"--parts: found no {sandbox / 'cifar' / 'vae7x7'}" in capsys.readouterr().err


def test_published_values():
    """Every method of the figures has all the settings that its table names."""
    for init in paper.INITS:
        assert set(paper.published("feature_extraction", "mnist", init)) == {f"k=1/{n}" for n in (2, 4, 8, 16)} | {
            "k=1"
        }
        for data, settings in (
            ("mnist", {"steps to 0.96 test accuracy"}),
            ("mnist-vae", {"bound at step 200", "bound at step 1000"}),
        ):
            assert set(paper.published("convergence", data, init)) == settings
    for target, sizes in (
        (classification.MNIST, classification.SIZES),
        (classification.CIFAR10, classification.COLOUR_SIZES),
    ):
        methods = ("dwp", "loguniform", "sn", *(["deterministic"] if target is classification.MNIST else []))
        for method in methods:
            assert set(classification.published_accuracies(method, target.name)) == set(map(str, sizes))
    assert paper.published("classification", "mnist", "dwp") == {
        "50": 0.8,
        "100": 0.867,
        "200": 0.915,
        "500": 0.945,
        "1000": 0.961,
    }


TURNED = "<!-- end of x -->\n<!-- x -->\n"


@pytest.mark.parametrize("text", ["", "<!-- x -->\n", REPORT.format("x") * 2, REPORT.format("y"), TURNED])
def test_a_report_without_marks(tmp_path, text):
    """Nor with marks in the wrong order."""
    file = tmp_path / "r.md"
    file.write_text(text)
    with pytest.raises(UserError, match="expected one line <!-- x -->"):
        paper.replaced(file, "x", "new")
