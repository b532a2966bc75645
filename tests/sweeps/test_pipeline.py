"""The pipeline: which stages run after a change of arguments, inputs or outputs, and after a stop."""

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

import utils
from runs.errors import Stopped
from sweeps import page, pipeline, scales, stages

SIZES = [f"{stage}{k}x{k}" for stage in ("kernels", "train-vae") for k in (7, 5)]
STAGES = ["nets-all", *SIZES, "rank-fconv", "vae7x7", "vae5x5", "bnns-all", "figures", "results"]
ALL = Counter({"train-net.py": 2, "train-vae.py": 6, "train-bnn.py": 4})


@pytest.fixture
def trained(script, monkeypatch):
    """Sweeps whose trials run in this process, one after the other: the number of trainings by script.

    `trained.stop_after` is the number of further trainings after which a sweep is stopped as by Ctrl-C.
    """
    counts = Counter()
    counts.stop_after = None

    def run_sweep(name, trials, resources, command):
        for trial in trials:
            if trial.record()["state"] == "finished":
                continue
            if counts.stop_after == 0:
                raise Stopped(2, "stopped")
            counts.stop_after = counts.stop_after and counts.stop_after - 1
            file = Path(trial.script).name
            root = script(file).main(list(trial.argv)).root
            trial.write_record({"state": "finished", "root": str(root), "attempts": 1, "error": ""})
            counts[file] += 1
        return [Path(trial.record()["root"]) for trial in trials]

    monkeypatch.setattr(stages, "run_sweep", run_sweep)
    return counts


@pytest.fixture
def plain(monkeypatch):
    """A pipeline without its figures and its ranking, which take most of the time. The third seed is the median."""

    def write_figures(folder, *more):
        return [pipeline.write_csv(folder / "elbo.csv", [{"elbo": 0}])]

    monkeypatch.setattr(pipeline, "write_figures", write_figures)
    monkeypatch.setattr(pipeline, "rank", lambda *more: [{"acc": acc} for acc in (0.9, 0.1, 0.5)])
    monkeypatch.setattr(page, "page_html", lambda *more: "page")


@pytest.fixture
def run(sandbox, capsys):
    """Run the pipeline at scale smoke, and return the stages that were not done before, in order."""

    def run(code=0):
        if code:
            with pytest.raises(SystemExit) as stop:
                pipeline.main(["--scale", "smoke"])
            assert stop.value.code == code
        else:
            pipeline.main(["--scale", "smoke"])
        lines = [line.split(": ", 1) for line in capsys.readouterr().out.splitlines()]
        return [name for name, *rest in lines if name in {*STAGES, "nets-more"} and rest != ["done before"]]

    return run


def stamp(out, name):
    return yaml.safe_load((out / "stages" / f"{name}.yaml").read_text())


def change(monkeypatch, **fields):
    monkeypatch.setitem(scales.SCALES, "smoke", scales.SCALES["smoke"]._replace(**fields))


def test_every_stage_once(run, trained, sandbox):
    out = sandbox / "logs" / "pipeline" / "smoke"
    assert run() == STAGES and trained == ALL
    for k in (7, 5):
        (conv,), (vae,) = out.glob(f"conv{k}x{k}-*"), out.glob(f"vae{k}x{k}-*")
        n = sum(len(np.load(conv / f"{part}.npy")) for part in ("train", "test"))
        assert n == {7: 2 * 4, 5: 2 * 4 * 6}[k]
        assert utils.load_vae(vae).kernel_dim == k
    with open(out / "rank-fconv.csv") as file:
        accuracies = [float(row["acc"]) for row in csv.DictReader(file)]
    for vae in out.glob("vae*"):
        seed = yaml.safe_load((vae / "params.yaml").read_text())["seed"]
        assert len(accuracies) == 3 and accuracies[seed - 1] == np.median(accuracies)
    with open(out / "results" / "groups.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "last_ens[2]_test_acc"]
    assert [(row["prior_list"], row["n"]) for row in rows] == [("vae vae", "2"), ("sn sn", "2")]
    vae_lists = {
        tuple(yaml.safe_load(p.read_text())["vae_list"])
        for p in sandbox.glob("logs/exman-train-bnn.py/runs/*/params.yaml")
    }
    assert vae_lists == {tuple(str(next(out.glob(f"vae{k}x{k}-*"))) for k in (7, 5))}
    with open(out / "figures" / "elbo.csv") as file:
        assert [row["vae"] for row in csv.DictReader(file)] == ["7x7", "5x5"]
    assert (out / "figures" / "latent7x7.png").exists() and (out / "results" / "page.html").exists()

    files = {p: p.stat().st_mtime_ns for p in sandbox.rglob("*") if p.is_file() and not p.name.startswith(".")}
    assert run() == [] and trained == ALL
    now = {p: p.stat().st_mtime_ns for p in sandbox.rglob("*") if p.is_file() and not p.name.startswith(".")}
    assert {p for p in now if now[p] != files.get(p)} == {out / "stages" / "data.yaml"}


def test_changes_run_what_depends_on_them(run, trained, plain, sandbox, monkeypatch):
    run()
    out, logs = sandbox / "logs" / "pipeline" / "smoke", sandbox / "logs"
    before = Counter(trained)

    def anew():
        nonlocal before
        stages, counts = run(), trained - before
        before = Counter(trained)
        return stages, dict(counts)

    # Arguments of a VAE: it, what depends on it, and nothing else.
    vaes = scales.SCALES["smoke"].vaes
    change(monkeypatch, vaes=vaes | {"5x5": vaes["5x5"]._replace(shared=vaes["5x5"].shared + " --var 0.1")})
    assert anew() == (
        ["train-vae5x5", "rank-fconv", "vae5x5", "bnns-all", "figures", "results"],
        {"train-vae.py": 3, "train-bnn.py": 4},
    )
    # And back: what was trained before is identified by its arguments, and by the content of the VAE's folder.
    change(monkeypatch, vaes=vaes)
    assert anew() == (["train-vae5x5", "rank-fconv", "vae5x5", "bnns-all", "figures", "results"], {})
    # More seeds: other kernels, other VAEs, other BNNs.
    net = scales.SCALES["smoke"].nets["all"]
    change(monkeypatch, nets={"all": net._replace(grid="--seed 1..3")})
    assert anew() == (STAGES, {"train-net.py": 1, "train-vae.py": 6, "train-bnn.py": 4})
    # An output that is missing, and one that was changed, of a run: it is trained again, to the same end.
    first, *others = sorted(logs.glob("exman-train-net.py/runs/*"))
    (first / "model.torch").unlink()
    assert anew() == (["nets-all"], {"train-net.py": 1})
    assert [p.name for p in (logs / "exman-train-net.py" / "tmp").iterdir()] == [first.name]
    assert len(list(logs.glob("exman-train-net.py/runs/*"))) == 1 + len(others)
    first = sorted(logs.glob("exman-train-net.py/runs/*"))[0]
    shutil.rmtree(first)
    assert anew() == (["nets-all"], {"train-net.py": 1})
    log = Path(next(p for p in stamp(out, "bnns-all")["outputs"] if p.endswith(".csv")))
    log.write_text("t\n1\n")
    assert anew() == (["bnns-all", "results"], {"train-bnn.py": 1})
    # Copies and pictures.
    (vae,) = {Path(path).parent for path in stamp(out, "vae7x7")["outputs"]}
    assert yaml.safe_load((vae / "params.yaml").read_text())["seed"] == 3
    (vae / "vae_params.torch").write_bytes(b"")
    assert anew() == (["vae7x7"], {})
    assert utils.load_vae(vae).kernel_dim == 7
    (out / "results" / "page.html").unlink()
    assert anew() == (["results"], {})
    (out / "stages" / "kernels7x7.yaml").write_text("[")
    assert anew() == (["kernels7x7"], {})
    # A sweep whose networks give kernels of one size.
    nets = {**scales.SCALES["smoke"].nets, "more": net._replace(grid="--seed 7")}
    kernels = scales.SCALES["smoke"].kernels | {"5x5": scales.Kernels(["all", "more"], 0)}
    change(monkeypatch, nets=nets, kernels=kernels)
    before7, before5 = (set(out.glob(f"conv{k}x{k}-*")) for k in (7, 5))
    assert anew() == (
        ["nets-more", "kernels5x5", "train-vae5x5", "rank-fconv", "vae5x5", "bnns-all", "figures", "results"],
        {"train-net.py": 1, "train-vae.py": 3, "train-bnn.py": 4},
    )
    (conv,) = set(out.glob("conv5x5-*")) - before5
    assert sum(len(np.load(conv / f"{part}.npy")) for part in ("train", "test")) == 4 * 4 * 6
    assert set(out.glob("conv7x7-*")) == before7


def test_another_vae_of_the_same_kernels(run, trained, plain, sandbox, monkeypatch):
    """It learns from the folder of the other VAE's kernels, and no kernels are extracted for it."""
    run()
    scaled = scales.Vae("5x5", "--norm 1 --hidden_dim 4 --z_dim 2 --num_epochs 3")
    change(monkeypatch, vaes=scales.SCALES["smoke"].vaes | {"5x5-scaled": scaled})
    run()
    out = sandbox / "logs" / "pipeline" / "smoke"
    (conv,), (vae,) = out.glob("conv5x5-*"), out.glob("vae5x5-scaled-*")
    params = yaml.safe_load((vae / "params.yaml").read_text())
    assert params["data_dir"] == str(conv) and params["norm"] == 1 and utils.load_vae(vae).kernel_dim == 5
    assert trained == ALL + Counter({"train-vae.py": 1})


@pytest.mark.parametrize("after", [1, 6, 10])
def test_a_stopped_pipeline_continues(run, trained, plain, after):
    trained.stop_after = after
    done = run(code=130)
    assert sum(trained.values()) == after and done[-1] in ("nets-all", "train-vae5x5", "bnns-all")
    trained.stop_after = None
    rest = run()
    assert rest == STAGES[STAGES.index(done[-1]) :] and trained == ALL


def test_other_data_are_refused(run, trained, plain, sandbox, capsys):
    run()
    (images,) = sandbox.glob("data/not-mnist/MNIST/raw/train-images*")
    images.write_bytes(images.read_bytes()[:-1] + b"\1")
    with pytest.raises(SystemExit) as stop:
        pipeline.main(["--scale", "smoke"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and "--source: found other images" in err


def write_source(path: Path, n_classes: int = 10, test: bool = True) -> str:
    """Write 120 + 30 random grey images as an npz file, and return its path."""
    generator = np.random.default_rng(n_classes)
    arrays = {}
    for part, n in (("train", 120), ("test", 30)) if test else (("train", 120),):
        arrays[f"{part}_images"] = generator.integers(0, 256, (n, 28, 28), np.uint8)
        arrays[f"{part}_labels"] = np.arange(n) % n_classes
    np.savez(path, **arrays)
    return str(path)


def test_a_scale_without_bayesian_networks(trained, plain, sandbox, monkeypatch, capsys):
    change(monkeypatch, bnns={})
    pipeline.main(["--scale", "smoke"])
    out = sandbox / "logs" / "pipeline" / "smoke"
    assert trained == Counter({"train-net.py": 2, "train-vae.py": 6}) and not (out / "results").exists()
    last = capsys.readouterr().out.splitlines()[-1]
    names = [path.name for k in (7, 5) for kind in ("conv", "vae") for path in out.glob(f"{kind}{k}x{k}-*")]
    assert len(names) == 4 and sorted(last.split("VAEs in ")[1].split()) == sorted(names)


def test_another_source(trained, plain, sandbox, capsys):
    """All networks learn from it, and nothing from notMNIST; its images identify the pipeline."""
    source = write_source(sandbox / "my images {1}.npz")
    shutil.rmtree(sandbox / "data")
    pipeline.main(["--scale", "smoke", "--source", source])
    assert trained == ALL
    used = {yaml.safe_load(path.read_text()).get("data") for path in sandbox.glob("logs/exman-*/runs/*/params.yaml")}
    assert used == {source, None}
    scale = scales.SCALES["smoke"]
    fewer = {"all": scale.nets["all"]._replace(shared=scale.nets["all"].shared.replace("50", "40"))}
    assert pipeline.check_data(scale, source) == pipeline.check_data(scale._replace(nets=fewer), source)
    capsys.readouterr()
    write_source(Path(source), 9)
    with pytest.raises(SystemExit) as stop:
        pipeline.main(["--scale", "smoke", "--source", source])
    assert stop.value.code == 2 and "--source: found other images" in capsys.readouterr().err and trained == ALL


@pytest.mark.parametrize(
    "source, message",
    [
        ({"test": False}, "rank-fconv: --data {}: found no test images, expected some"),
        ({"n_classes": 30}, "rank-fconv: --num_examples: found 20"),
    ],
)
def test_a_source_that_does_not_suit_a_later_stage(source, message, sandbox, refusal):
    path = write_source(sandbox / "source.npz", **source)
    assert message.format(path) in refusal("sweeps.pipeline", ["--scale", "smoke", "--source", path])
