"""Folders of images, and npz files of another shape: what is read, converted, left out and refused."""

import os
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import utils
from data import images
from experiments import predict
from runs.errors import UserError
from tests.conftest import COLORS, assert_same_end

GREY, COLOUR = (1, 28, 28), (3, 32, 32)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


def load(color_folder, shape=COLOUR, test_fraction=0.2, seed=42):
    return utils.load_data(str(color_folder), shape, test_fraction, seed)


def test_one_level_is_split_by_class(color_folder, capsys):
    train, test = load(color_folder)
    assert train.images.shape == (24, *COLOUR) and test.images.shape == (6, *COLOUR)
    assert train.labels.bincount().tolist() == [8, 8, 8] and test.labels.bincount().tolist() == [2, 2, 2]
    for part in (train, test):
        expected = torch.tensor(list(COLORS.values()), dtype=torch.uint8)[part.labels][..., None, None]
        assert (part.images == expected).all()
    assert (
        images.class_names(color_folder) == list(COLORS)
        and "its images are converted to (3, 32, 32)" in capsys.readouterr().out
    )
    other = load(color_folder, seed=1)[1]
    assert load(color_folder, test_fraction=0.5)[1].labels.bincount().tolist() == [5, 5, 5] and len(other.labels) == 6


def test_colour_to_grey(color_folder):
    train, _ = load(color_folder, GREY)
    for label, color in enumerate(COLORS.values()):
        found = train.images[train.labels == label].float()
        assert (found - np.dot(color, LUMA)).abs().max() <= 1


def test_crop_and_resize(tmp_path):
    """The middle of a wide image with a ramp: the mean of each target pixel is the mean of the ramp over its place."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ramp = np.broadcast_to(np.arange(0, 252, 1.5).astype(np.uint8), (84, 168))
        Image.fromarray(ramp.copy()).save(tmp_path / name / "x.png")
    part, *_ = images.read_part(tmp_path, ["a", "b"], GREY, tmp_path)
    pixels = part.images[0, 0].astype(float)
    expected = np.arange(0, 252, 1.5)[42:126].reshape(28, 3).mean(1)
    assert np.abs(pixels[:, 1:-1] - expected[1:-1]).max() <= 1.5 and (np.ptp(pixels, 0) == 0).all()


@pytest.mark.parametrize(
    "mode, value, expected",
    [
        ("1", 1, 255),
        ("L", 77, 77),
        ("I;16", 257 * 77, 77),
        ("LA", (77, 255), 77),
        ("P", 3, None),
        ("RGBA", (9, 9, 9, 255), 9),
        ("CMYK", (0, 0, 0, 0), 255),
    ],
)
def test_kinds_of_pixels(mode, value, expected, tmp_path):
    image = Image.fromarray(np.full((5, 5), value, np.uint16)) if mode == "I;16" else Image.new(mode, (5, 5), value)
    if mode == "P":
        image.putpalette([0] * 9 + [77, 77, 77] + [0] * 756)
        expected = 77
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    image.save(path)
    for shape in (GREY, COLOUR):
        found = images.read_image(path, shape)
        assert found.shape == shape and (found.int() - expected).abs().max() <= 1


@pytest.mark.parametrize("mode, black", [("RGBA", (0, 0, 0)), ("LA", (0,))])
def test_transparent_pixels_are_white(mode, black, tmp_path):
    image = Image.new(mode, (32, 32), (*black, 0))
    image.paste((*black, 255), (0, 0, 16, 32))
    image.save(tmp_path / "x.png")
    for shape in (GREY, COLOUR):
        found = images.read_image(tmp_path / "x.png", shape)
        assert found[..., :13].max() == 0 and found[..., -13:].min() == 255


@pytest.mark.parametrize("pixels", [np.full((5, 5), 0.5, np.float32), np.full((5, 5), 70_000, np.int32)])
def test_pixels_of_unknown_range_are_left_out(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "x.tiff")
    assert images.read_image(tmp_path / "x.tiff", GREY) is None


def test_other_layouts_are_no_classes(color_folder, tmp_path):
    """Digits in folders below training/ and testing/ are not images of the classes "testing" and "training"."""
    for part in ("training", "testing"):
        shutil.copytree(color_folder, tmp_path / "other" / part)
    with pytest.raises(UserError, match="testing: found no image"):
        load(tmp_path / "other")
    before = load(color_folder)[0]
    (color_folder / "red" / ".ipynb_checkpoints").mkdir()
    shutil.copy(color_folder / "red" / "0.png", color_folder / "red" / ".ipynb_checkpoints" / "0-checkpoint.png")
    shutil.copy(color_folder / "red" / "0.png", color_folder / "red" / "._0.png")
    assert torch.equal(load(color_folder)[0].images, before.images)


def test_an_upright_photograph(tmp_path):
    """The orientation that a camera writes into the file is heeded."""
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:20] = 255  # bright at the top, as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    Image.fromarray(picture).save(tmp_path / "x.jpg", exif=exif, quality=100)
    found = images.read_image(tmp_path / "x.jpg", COLOUR)[0].float()
    assert found[:, 17:].min() > 250 and found[:, :15].max() < 5


def test_the_order_of_files_does_not_matter(color_folder, monkeypatch):
    """The same files in the same order, however the file system lists files and classes."""
    expected = images.read_folder(color_folder, COLOUR, 0.2, 42)
    listed = []

    def shuffled(method):
        def wrapped(*args):
            found = list(method(*args))
            listed.append(method.__name__)
            return iter(random.Random(0).sample(found, len(found)))

        return wrapped

    for name in ("glob", "iterdir"):
        monkeypatch.setattr(Path, name, shuffled(getattr(Path, name)))
    found = images.read_folder(color_folder, COLOUR, 0.2, 42)
    for part, other in zip(expected, found, strict=True):
        assert part.files.tolist() == other.files.tolist() and part.labels.tolist() == other.labels.tolist()
    assert {"glob", "iterdir"} <= set(listed)


def test_files_that_are_not_read_are_named(color_folder, capsys):
    """Those without the ending of an image, and images in a folder of a class; no hidden ones."""
    shutil.copytree(color_folder / "red", color_folder / "red" / "more")
    (color_folder / "red" / ".DS_Store").touch()
    assert sum(len(part.labels) for part in load(color_folder)) == 30
    shown = "blue/notes.txt, green/notes.txt, red/more/0.png, red/more/1.bmp, red/more/2.tiff, ..."
    assert capsys.readouterr().err == f"{color_folder}: 14 other files are not read: {shown}\n"
    (color_folder / "labels.csv").touch()
    load(color_folder)
    assert f"{color_folder}: 15 other files are not read: labels.csv, blue/notes.txt" in capsys.readouterr().err
    (color_folder / "labels.csv").unlink()
    images.read_any(color_folder, COLOUR)
    assert "4 other files are not read: blue/notes.txt, green/notes.txt, red/more/notes" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["test", "val"])
def test_test_images_beside_the_classes_are_no_class(part, color_folder):
    (color_folder / "red").rename(color_folder / part)
    with pytest.raises(
        UserError, match=f"found the folder {part} beside the classes, expected these in a folder train"
    ):
        load(color_folder)


def test_two_levels(color_folder, tmp_path, capsys):
    root = tmp_path / "two"
    root.mkdir()
    os.rename(color_folder, root / "train")
    train, test = load(root)
    assert len(train.labels) == 30 and test.images.shape == (0, *COLOUR)
    assert f"{root}: found no test/, the network is not evaluated\n" in capsys.readouterr().err
    (root / "val").mkdir()
    load(root)
    assert f"{root}: found val/ but no test/, the network is not evaluated\n" in capsys.readouterr().err
    for name in COLORS:
        (root / "test" / name).mkdir(parents=True)
        os.rename(root / "train" / name / "3.PNG", root / "test" / name / "3.PNG")
    train, test = load(root)
    assert len(train.labels) == 27 and test.labels.tolist() == [0, 1, 2]
    assert "not evaluated" not in capsys.readouterr().err
    (root / "test" / "pink").mkdir()
    with pytest.raises(UserError, match=r"found the classes .*'pink'.*, expected those of train"):
        load(root)


def test_damaged_images_are_named_and_left_out(color_folder, capsys):
    (color_folder / "red" / "0.png").write_bytes(b"")
    content = (color_folder / "blue" / "1.bmp").read_bytes()
    (color_folder / "blue" / "1.bmp").write_bytes(content[: len(content) // 2])
    Image.fromarray(np.zeros((9, 9), np.float32)).save(color_folder / "red" / "5.tiff")
    train, test = load(color_folder)
    assert len(train.labels) + len(test.labels) == 28
    assert (
        "3 images are left out, damaged or of 32-bit pixels: blue/1.bmp, red/0.png, red/5.t" in capsys.readouterr().err
    )
    for file in (color_folder / "red").iterdir():
        file.write_bytes(b"x")
    with pytest.raises(UserError, match="red: found no image, expected one for each class"):
        load(color_folder)


def png(width, height):
    """A PNG file that claims to have this size and holds a few bytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(12_000, 9_000), (60_000, 60_000)])
def test_a_bomb_is_refused(size, color_folder):
    (color_folder / "red" / "0.png").write_bytes(png(*size))
    with pytest.raises(UserError, match=r"0\.png: found more than 100000000 pixels"):
        load(color_folder)


def test_a_link_out_of_the_folder_is_refused(color_folder, tmp_path):
    Image.new("L", (30, 30)).save(tmp_path / "secret.png")
    (color_folder / "red" / "10.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match=r"10\.png: found a link out of the folder"):
        load(color_folder)
    (color_folder / "red" / "10.png").unlink()
    (color_folder / "red" / "10.png").symlink_to("0.png")
    assert sum(len(part.labels) for part in load(color_folder)) == 31


@pytest.mark.parametrize(
    "classes, message", [((), "found 0 folders"), (("a",), "found 1 folders"), (("a", "b"), "{}/a: found no image")]
)
def test_no_images(classes, message, tmp_path):
    for name in classes:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert str(error.value).startswith(f"--data {tmp_path}: {message.format(tmp_path)}")


def test_an_npz_file_of_another_shape(tmp_path, capsys):
    content = {f"{part}_images": np.full((2, 32, 32, 3), (255, 0, 0), np.uint8) for part in ("train", "test")}
    np.savez(tmp_path / "x.npz", train_labels=[0, 1], test_labels=[0, 1], **content)
    train, test = utils.load_data(str(tmp_path / "x.npz"), GREY)
    assert train.images.shape == test.images.shape == (2, *GREY) and (train.images == 76).all()
    assert "images of (3, 32, 32) are converted to (1, 28, 28)" in capsys.readouterr().out


def test_a_run_on_a_folder(color_folder, script, sandbox, capsys):
    """The number of classes is the folder's, their names are stored, and the run continues."""
    options = "--hid_dim 2 3 --epochs 2 --bs 8 --aug affine --device cpu"
    argv = ["--data", str(color_folder), *options.split()]
    run = script("train-net.py").main(argv)
    params = yaml.safe_load((run.root / "params.yaml").read_text())
    assert params["classes"] == list(COLORS) and params["n_classes"] == 3
    net, loaded = utils.load_network(run.root)
    assert net.classifier.out_features == 3 and loaded["classes"] == list(COLORS)
    again = script("train-net.py").main(["--config", str(run.root / "params.yaml")])
    assert "ignored" not in capsys.readouterr().err
    assert_same_end(run.root, again.root)
    bnn = script("train-bnn.py").main([*argv, "--num_examples", "6", "--ens", "2", "--test_fraction", "0.5"])
    assert bnn.rows[-1]["draws/brier"] < 2 and len(utils.load_run_data(vars(bnn.args))[1].labels) == 15
    other = script("train-net.py").main([*argv, "--test_fraction", "0.4"])
    with pytest.raises(SystemExit):
        predict.main([str(run.root), str(other.root), str(color_folder)])
    assert "found runs with the test images 0.2 by seed 42, 0.4 by seed 42 of" in capsys.readouterr().err
    for n in ("2", "10"):
        with pytest.raises(SystemExit):
            script("train-net.py").main([*argv, "--n_classes", n])
        assert f"--n_classes: found {n}, expected" in capsys.readouterr().err
    os.rename(color_folder, color_folder.with_name("moved"))
    script("train-net.py").main(["--continue", str(run.root), "--data", str(color_folder.with_name("moved"))])
    assert "overridden: data" in capsys.readouterr().err
