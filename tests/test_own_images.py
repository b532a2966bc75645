"""The README's commands for somebody's own images, from a folder of pictures to the table of predictions."""

import csv
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from experiments import predict
from runs.directory import ROOT

CLASSES = {"dunes": (0.0, (200, 170, 120)), "lakes": (0.5, (60, 110, 170)), "woods": (1.0, (30, 60, 30))}


def readme_commands():
    """The words of each command in the README's section on own images, with the VAEs by their absolute paths."""
    section = re.search(r"\n## Your images\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.S)[1]
    blocks = "".join(re.findall(r"^```\n(.*?)^```", section, re.S | re.M))
    lines = blocks.replace("\\\n", "").replace("data/fconv", str(ROOT / "data" / "fconv")).splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def photograph(rng, name):
    """A picture of a class: stripes of its direction, with an uneven light, noise and the class's color."""
    direction, color = CLASSES[name]
    height, width = rng.integers(60, 90, 2)
    y, x = np.mgrid[:height, :width] / 60
    wave = np.sin(2 * np.pi * (rng.uniform(2, 3) * (direction * x + (1 - direction) * y) + rng.uniform()))
    light = 1 + 0.2 * wave + 0.15 * rng.uniform(-1, 1) * x + 0.05 * rng.standard_normal((height, width))
    return Image.fromarray((light[..., None] * color).clip(0, 255).astype(np.uint8))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """60 PNG and JPEG pictures of three classes in my_images/, two of them damaged, and others in new_images/."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        for folder, n in (("my_images", 20), ("new_images", 4)):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(n):
                photograph(rng, name).save(tmp_path / folder / name / f"{i}.{('png', 'jpg')[i % 2]}")
    photograph(rng, "lakes").save(tmp_path / "new_images" / "new.jpg")
    for damaged in ("lakes/2.png", "woods/3.jpg"):
        file = tmp_path / "my_images" / damaged
        file.write_bytes(file.read_bytes()[:100])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DWP_PATH", "logs")
    return tmp_path


def test_from_a_folder_to_predictions(pictures, script, capsys):
    """The commands as written but for the epochs, and for two networks in place of five."""
    bnn, net, predict_bnn, predict_nets = readme_commands()
    for command, seed, epochs in ((bnn, "1", "2"), (net, "1", "20"), (net, "2", "20")):
        python, name, *argv = command
        assert python == "python" and argv[argv.index("--epochs") + 1] == "300"
        script(name).main([*argv, "--epochs", epochs, "--seed", seed])
        assert "2 images are left out, damaged or of 32-bit pixels: lakes/2.png, woods/3.jpg" in capsys.readouterr().err
    for (*_, module, runs, data, option, out), networks in ((predict_bnn, 1), (predict_nets, 2)):
        roots = sorted(map(str, pictures.glob(f"{runs.rpartition('/')[0]}/*")))
        assert module == "experiments.predict" and len(roots) == networks
        predict.main([*roots, data, option, out])
        printed = capsys.readouterr().out
        assert "13 images: predictions.csv, predictions.png" in printed and "to label next: new.jpg" in printed
        with open(out, newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["label"] for row in rows] == [row["image"].rpartition("/")[0] for row in rows]
        assert all(sum(float(row[f"p_{name}"]) for name in CLASSES) == pytest.approx(1) for row in rows)
    assert sum(row["class"] == row["label"] for row in rows) > 8  # of 12; the last networks have learnt the classes
