"""npz files with MedMNIST's layout: what is read, what is refused, and training without test images."""

import io
import shutil
import zipfile

import numpy as np
import pytest
import torch

import utils
from runs.errors import UserError
from tests.conftest import SMALL, assert_same_values, read_log, without_times


def arrays(rng, part, n, shape, classes=4):
    return {
        f"{part}_images": rng.integers(0, 256, (n, *shape), np.uint8),
        f"{part}_labels": rng.integers(0, classes, (n, 1), np.uint8),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (32, 30, 3)])
def test_what_is_read(save, shape, tmp_path):
    rng = np.random.default_rng(0)
    content = arrays(rng, "train", 7, shape) | arrays(rng, "test", 5, shape)
    content["test_labels"] = content["test_labels"].reshape(-1).astype(np.int32)
    save(tmp_path / "x.npz", classes=np.array([{}], dtype=object), **arrays(rng, "val", 3, shape), **content)
    for part, found in zip(("train", "test"), utils.load_data(str(tmp_path / "x.npz")), strict=True):
        images = content[f"{part}_images"]
        assert found.images.dtype == torch.uint8 and found.labels.dtype == torch.int64
        for c in range(shape[2] if len(shape) == 3 else 1):
            assert (found.images[:, c].numpy() == images.reshape(len(images), *shape[:2], -1)[..., c]).all()
        assert found.labels.tolist() == content[f"{part}_labels"].reshape(-1).tolist()


IMAGES, LABELS = np.zeros((4, 28, 28), np.uint8), np.arange(4)
MISTAKES = {
    "no labels": ({"train_labels": None}, "train_labels: missing"),
    "no test labels": ({"test_images": IMAGES}, "test_labels: missing"),
    "floats": ({"train_images": IMAGES / 255}, "train_images: found float64 of shape (4, 28, 28), expected uint8"),
    "channels first": ({"train_images": np.zeros((4, 3, 32, 32), np.uint8)}, "of shape (4, 3, 32, 32), expected"),
    "no images": ({"train_images": IMAGES[:0], "train_labels": LABELS[:0]}, "of shape (0, 28, 28), expected"),
    "one-hot labels": ({"train_labels": np.eye(4, dtype=int)}, "of shape (4, 4), expected whole numbers of (4,) or"),
    "fewer labels": ({"train_labels": LABELS[:3]}, "of shape (3,), expected whole numbers of (4,)"),
    "real labels": ({"train_labels": LABELS / 2}, "train_labels: found float64"),
    "negative labels": ({"train_labels": LABELS - 1}, "train_labels: found -1 to 2, expected"),
    "huge labels": ({"train_labels": LABELS.astype(np.uint64) + 2**63}, "train_labels: found 9223372036854775808 to"),
    "pickled images": ({"train_images": np.array([None])}, "train_images: Object arrays cannot be loaded"),
    "other test images": (
        {"test_images": np.zeros((4, 32, 32), np.uint8), "test_labels": LABELS},
        "found images of (1, 28, 28) and (1, 32, 32), expected one shape",
    ),
}


@pytest.mark.parametrize("change, expected", MISTAKES.values(), ids=MISTAKES)
def test_what_is_refused(change, expected, tmp_path):
    content = {"train_images": IMAGES, "train_labels": LABELS} | change
    np.savez(tmp_path / "x.npz", **{name: array for name, array in content.items() if array is not None})
    with pytest.raises(UserError) as refused:
        utils.load_data(str(tmp_path / "x.npz"))
    assert str(refused.value).startswith(f"--data {tmp_path / 'x.npz'}: ") and expected in str(refused.value)


def test_every_damage_is_refused(tmp_path):
    """The file cut at any place, and any byte of its headers changed: read as it was, or refused."""
    path, content = tmp_path / "x.npz", io.BytesIO()
    rng = np.random.default_rng(0)
    np.savez_compressed(content, **arrays(rng, "train", 2, (3, 3)))
    whole = content.getvalue()
    path.write_bytes(whole)
    expected = utils.load_data(str(path))[0]
    cut = [whole[:n] for n in range(0, len(whole), 7)]
    flipped = [whole[:i] + bytes([whole[i] ^ bit]) + whole[i + 1 :] for i in range(len(whole)) for bit in (1, 128)]
    refused = 0
    for damaged in (*cut, *flipped):
        path.write_bytes(damaged)
        try:
            found = utils.load_data(str(path))[0]
        except UserError:
            refused += 1
        else:
            assert (found.images == expected.images).all() and (found.labels == expected.labels).all()
    assert refused > len(cut)


def npz_of_not_mnist(path, parts=("train", "test")):
    """An npz file with these parts of the small notMNIST."""
    content = {}
    for part, data in zip(("train", "test"), utils.load_data("not-mnist"), strict=True):
        if part in parts:
            content |= {f"{part}_images": data.images[:, 0], f"{part}_labels": data.labels}
    np.savez(path, **{name: array.numpy() for name, array in content.items()})
    return str(path)


@pytest.mark.parametrize("name", ["train-net.py", "train-bnn.py"])
def test_the_same_images_from_a_file(name, sandbox, script):
    """A run on the file is the run on the data set, and the file may move before the run is continued."""
    main = script(name).main
    argv = [*SMALL, "--num_examples", "20"]
    root = main(argv).root
    file = npz_of_not_mnist(sandbox / "x.npz")
    own = main([*argv, "--data", file]).root
    assert_same_values(root / "model.torch", own / "model.torch")
    assert without_times(read_log(root)) == without_times(read_log(own))
    shutil.move(file, sandbox / "y.npz")
    main(["--continue", str(own), "--data", str(sandbox / "y.npz")])
    with zipfile.ZipFile(sandbox / "z.npz", "w") as other:
        other.writestr("train_images.npy", b"")
    with pytest.raises(SystemExit):
        main(["--continue", str(own), "--data", str(sandbox / "z.npz")])


@pytest.mark.parametrize("name", ["train-net.py", "train-bnn.py"])
@pytest.mark.parametrize("more", [[], ["--rfe", "1"]])
def test_training_without_test_images(name, more, sandbox, script):
    """The log has the columns of the training images alone. The first epoch is that of a run with test images."""
    if name == "train-bnn.py" and more:
        more = ["--classifier_prior", "sn"]
    main = script(name).main
    argv = [*SMALL, "--num_examples", "20", *more]
    root, own = main(argv).root, main([*argv, "--data", npz_of_not_mnist(sandbox / "x.npz", ["train"])]).root
    (row, last), expected = read_log(own), read_log(root)[0]
    scores = {name for name in expected if "test" in name or name.split("/")[0] in ("ensemble", "draws", "det")}
    assert len(scores) >= 4 and list(row) == list(last) == [name for name in expected if name not in scores]
    assert all(row[name] == expected[name] for name in row.keys() - {"sec"})
    assert (own / "model.torch").exists()
