"""Mistakes that the experiments of the paper name before their first trial, and what their reports say of the runs."""

import pytest

from experiments import classification, convergence, feature_extraction, paper
from runs.files import write_yaml
from sweeps import cluster
from tests.experiments.conftest import colour_file


def stops(module, argv, capsys, monkeypatch):
    """The line on stderr of a command that stops before its first trial."""
    monkeypatch.setattr(cluster, "run_sweep", None)
    with pytest.raises(SystemExit) as stop:
        module.main(["--scale", "laptop", *argv])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    return line


@pytest.mark.parametrize(
    "option, classes, parts, expected",
    [
        ("cifar10", 10, ("train",), "found 0 classes of test images, expected 10"),
        ("cifar100", 20, ("train", "test"), "found 20 classes of training images, expected 100"),
    ],
)
def test_other_colour_images(option, classes, parts, expected, sandbox, monkeypatch, capsys):
    files = {
        "cifar10": colour_file(sandbox / "10.npz", 10, learnt=60),
        "cifar100": colour_file(sandbox / "100.npz", 100),
    }
    files[option] = colour_file(sandbox / "other.npz", classes, parts)
    monkeypatch.setattr(classification, "require_files", lambda files: None)
    names = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    line = stops(classification, ["--parts", "ours", "ours-cifar10", *names], capsys, monkeypatch)
    assert f"--{option} {files[option]}: {expected}" in line


@pytest.mark.parametrize("module", [classification, convergence, feature_extraction])
@pytest.mark.parametrize(
    "option, expected",
    [
        ("--cifar10 x.npz", "reads it, expected one that does"),
        ("--parts cifar10 --cifar10 {}/no.npz", "--cifar10 {}/no.npz: No such file"),
        (
            "--parts cifar10 --cifar10 {}/100.npz",
            "--cifar10 {}/100.npz: found 100 classes of training images, expected 10",
        ),
        ("--parts cifar10 --cifar10 not-mnist", "found images of shape (1, 28, 28), expected (3, 32, 32)"),
        ("--out {}/100.npz", "--out {}/100.npz: File exists, expected a folder to write to"),
    ],
)
def test_mistakes_are_named_before_the_first_run(module, option, expected, sandbox, monkeypatch, capsys):
    for own in (paper, classification):
        monkeypatch.setattr(own, "require_files", lambda files: None)
    colour_file(sandbox / "100.npz", 100)
    argv = option.format(sandbox).split()
    if module is classification:
        argv = ["ours-cifar10" if word == "cifar10" else word for word in argv]
    assert expected.format(sandbox) in stops(module, argv, capsys, monkeypatch)


def test_other_mistakes_of_classification(sandbox, vae_folder, monkeypatch, capsys):
    """Too few images of a class, VAEs of other sizes, and settings that the command would write over."""
    monkeypatch.setattr(classification, "require_files", lambda files: None)
    file = colour_file(sandbox / "10.npz", 10)
    line = stops(classification, ["--parts", "ours-cifar10", "--cifar10", str(file)], capsys, monkeypatch)
    assert f"--cifar10 {file}, of which a part learns from 500 images: found 500, expected 10" in line
    vaes = sandbox / "vaes"
    vaes.mkdir()
    for name, k in (("vae7x7", 5), ("vae5x5", 7)):
        (vaes / name).symlink_to(vae_folder(k))
    line = stops(classification, ["--vaes", str(vaes)], capsys, monkeypatch)
    assert f"--vaes {vaes}: vae7x7 is a VAE of 5x5 kernels, expected 7x7" in line
    line = stops(classification, ["--parts", "published", "ours-cifar10", "--settings", "no.yaml"], capsys, monkeypatch)
    assert "--settings: " in line and "no.yaml" in line
    line = stops(classification, ["--parts", "published", "--settings", "no.yaml"], capsys, monkeypatch)
    assert "--settings: none of the parts published reads it" in line
    settings = sandbox / "out" / "settings.yaml"
    argv = ["--settings", str(settings), "--out", str(settings.parent)]
    line = stops(classification, argv, capsys, monkeypatch)
    assert f"--settings {settings}: found it in --out" in line


def test_images_that_make_fewer_steps():
    """The table leaves out the value at a step that no run has."""
    task = convergence.COLOUR
    rows = convergence.compare(task, {"dwp": [{100: 0.4, 300: 0.5}]}, [0.001])
    assert rows[1] == ["dwp", "0.001", "0.400 ± nan (1)", "", "", ""]


@pytest.mark.parametrize("dirty", ["", "-dirty"])
def test_the_code_of_the_runs(dirty, tmp_path):
    for name, mark in (("a", ""), ("b", dirty)):
        (tmp_path / name).mkdir()
        own = {"processor": "a CPU", "torch": "2.14.1", "commit": f"{'ab' * 20}{mark}"}
        write_yaml(tmp_path / name / "params.yaml", {"time": "2026-01-02T03:04:05", "environment": own})
    found = paper.environment_text([tmp_path / name for name in "ab"])
    code = "abababab, abababab-dirty (-dirty: with changes that were not committed)." if dirty else "abababab."
    assert found == f"2 runs, 2026-01-02, on a CPU with torch 2.14.1, code of {code}"
