"""The colour data sets, of small files in their true formats."""

import hashlib
import pickle

import numpy as np
import pytest
import scipy.io
import torch
from torchvision import datasets

import utils


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """CIFAR-10 and CIFAR-100 of 10 images per batch in their true format, with test checksums."""
    rng = np.random.default_rng(0)

    def batch(path, key, labels):
        data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        content = pickle.dumps({"data": data, key: labels})
        path.write_bytes(content)
        return [path.name, hashlib.md5(content).hexdigest()]

    for cls, key, meta_key, meta in (
        (datasets.CIFAR10, "labels", "label_names", "batches.meta"),
        (datasets.CIFAR100, "fine_labels", "fine_label_names", "meta"),
    ):
        folder = tmp_path / cls.base_folder
        folder.mkdir()
        n_train = 5 if cls is datasets.CIFAR10 else 1
        names = [name for name, _ in datasets.CIFAR10.train_list] if n_train == 5 else ["train"]
        classes = 10 if n_train == 5 else 100
        labels = [[int(label) for label in rng.permutation(classes)[:10]] for _ in range(n_train + 1)]
        test_name = "test_batch" if n_train == 5 else "test"
        train = [batch(folder / name, key, part) for name, part in zip(names, labels, strict=False)]
        monkeypatch.setattr(cls, "train_list", train)
        monkeypatch.setattr(cls, "test_list", [batch(folder / test_name, key, labels[-1])])
        content = pickle.dumps({meta_key: [str(i) for i in range(classes)]})
        (folder / meta).write_bytes(content)
        monkeypatch.setattr(cls, "meta", {"filename": meta, "key": meta_key, "md5": hashlib.md5(content).hexdigest()})
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    return tmp_path


def test_cifar(small_cifar):
    train, test = utils.load_data("cifar")
    assert train.images.shape == (50, 3, 32, 32) and test.images.shape == (10, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    with open(small_cifar / "cifar-10-batches-py" / "test_batch", "rb") as file:
        raw = pickle.load(file)
    assert test.images.flatten(1).tolist() == raw["data"].tolist() and test.labels.tolist() == raw["labels"]
    halves = [utils.load_data(name)[0] for name in ("cifar5", "cifar5-rest")]
    assert [sorted(half.labels.unique().tolist()) for half in halves] == [[0, 1, 2, 3, 4]] * 2
    assert torch.equal(halves[0].images, train.images[train.labels < 5])
    assert torch.equal(halves[1].labels, train.labels[train.labels >= 5] - 5)
    train, _ = utils.load_data("cifar100")
    assert len(train.labels) == 10 and train.labels.max() > 9


def test_svhn(small_inputs):
    train, test = utils.load_data("svhn")
    raw = scipy.io.loadmat(small_inputs / "svhn" / "test_32x32.mat")
    assert test.images.permute(2, 3, 1, 0).tolist() == raw["X"].tolist()
    assert test.labels.tolist() == (raw["y"][:, 0] % 10).tolist() and len(train.labels) == 20


@pytest.mark.parametrize("name, file", [("cifar", "cifar-10-python.tar.gz"), ("svhn", "train_32x32.mat")])
def test_a_data_set_that_cannot_be_had(tmp_path, monkeypatch, script, capsys, name, file):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.setattr(datasets.CIFAR10, "url", "https://nowhere.invalid/cifar-10-python.tar.gz")
    splits = {split: ["https://nowhere.invalid/x", f"{split}_32x32.mat", "0" * 32] for split in ("train", "test")}
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)
    with pytest.raises(SystemExit):
        script("train-net.py").main(["--data", name, "--model", "cifarnet"])
    err = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(err) == 1 and f"--data {name}" in err[0] and file in err[0] and str(tmp_path) in err[0]
