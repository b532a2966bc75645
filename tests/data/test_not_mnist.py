"""notMNIST: its files, its recipe on fonts, and its archive."""

import gzip
import io
import shutil
import tarfile
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

import utils
from data import not_mnist, prepare_not_mnist
from data.idx import idx_bytes, parse_idx, read_idx_bytes, write_file
from runs.errors import UserError

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def write_letters(folder, rng, n):
    """n PNG files of noise for each letter, as in notMNIST's archive."""
    for letter in not_mnist.LETTERS:
        (folder / letter).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(folder / letter / f"font{i}.png")


def test_not_idx(tmp_path, sandbox):
    path = sandbox / "data" / "not-mnist" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="not-mnist t10k labels"):
        utils.load_data("not-mnist")
    shutil.rmtree(sandbox / "data")
    with pytest.raises(UserError, match="prepare_not_mnist"):
        utils.load_data("not-mnist")


def test_halves_of_the_letters(sandbox):
    (train, test), first, second = (utils.load_data(f"not-mnist{name}") for name in ("", "5", "5-rest"))
    for part, low, high in zip((train, test), first, second, strict=True):
        late = part.labels >= 5
        assert (part.images[~late] == low.images).all() and (part.images[late] == high.images).all()
        assert low.labels.unique().tolist() == high.labels.unique().tolist() == [0, 1, 2, 3, 4]
        assert (part.labels[late] == high.labels + 5).all()


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
    families = {g.family for path in fonts.glob("DejaVuS*") for g in not_mnist.glyphs_of_font(path)}
    assert len({not_mnist.is_test(name, 0.5) for name in families}) == 2
    assert not_mnist.glyphs_of_font(FONTS / "STIXSizOneSymReg.ttf") == []


@pytest.mark.parametrize("packed", [True, False])
def test_not_mnist_from_its_archive(tmp_path, monkeypatch, capsys, packed):
    rng = np.random.default_rng(0)
    source = tmp_path / "notMNIST_small"
    write_letters(source, rng, 8)
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
    images = parse_idx(read_idx_bytes(raw / "train-images-idx3-ubyte"), "")
    labels = parse_idx(read_idx_bytes(raw / "train-labels-idx1-ubyte"), "")
    first = np.asarray(Image.open(source / "ABCDEFGHIJ"[labels[0]] / "font0.png"))
    assert len(images) + len(parse_idx(read_idx_bytes(raw / "t10k-labels-idx1-ubyte"), "")) == 80
    stems = [np.asarray(Image.open(p)) for p in sorted((source / "ABCDEFGHIJ"[labels[0]]).glob("font*.png"))]
    assert first.shape == (28, 28) and any((images[0] == image).all() for image in stems)


def test_several_sources_make_one_data_set(tmp_path, monkeypatch, capsys):
    """IDX parts stay what they are, undivided IDX images are split by their pixels, an equal image is taken once."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 10
    known = {part: rng.integers(0, 256, (200, 28, 28), dtype=np.uint8) for part in ("train", "t10k")}
    more = rng.integers(0, 256, (400, 28, 28), dtype=np.uint8)
    more[:7] = known["t10k"][:7]
    for folder, name, images in (("a", "train", known["train"]), ("a", "t10k", known["t10k"]), ("b", "all", more)):
        for kind, array in (("images-idx3", images), ("labels-idx1", np.resize(labels, len(images)))):
            write_file(tmp_path / folder / f"{name}-{kind}-ubyte", idx_bytes(array))
    file = tmp_path / "b" / "all-images-idx3-ubyte"
    file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    archive = tmp_path / "letters"
    write_letters(archive, rng, 1)
    argv = ["--idx", str(tmp_path / "a"), str(tmp_path / "b"), "--archive", str(archive), "--test_share", "0.25"]
    prepare_not_mnist.main([*argv, "--root", str(tmp_path / "root")])
    out = capsys.readouterr().out
    assert "left out: 7 duplicates" in out
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "root"))
    found = dict(zip(known, utils.load_data("not-mnist"), strict=True))
    pixels = {part: [image.numpy().tobytes() for image in data.images] for part, data in found.items()}
    for part, images in known.items():
        assert {image.tobytes() for image in images} <= set(pixels[part])
    tested = sum(image.tobytes() in set(pixels["t10k"]) for image in more[7:])
    assert 393 * 0.15 < tested < 393 * 0.35  # a binomial share of 0.25, by fixed images
    assert sum(map(len, pixels.values())) == 200 + 200 + 393 + 10
    label_of = {
        image: label
        for part, data in found.items()
        for image, label in zip(pixels[part], data.labels.tolist(), strict=True)
    }
    assert [label_of[image.tobytes()] for image in more[7:]] == np.resize(labels, 400)[7:].tolist()
    n = len(pixels["t10k"])
    assert f"t10k: {n} images (" in out and f"{200 / n:.0%} from {tmp_path / 'a'}, {tested / n:.0%} from" in out


def test_a_folder_and_its_archive_give_the_same_images_in_the_same_order(tmp_path, capsys):
    """So a split seed picks the same images from both, and from an archive that was packed in another order."""
    rng = np.random.default_rng(0)
    source = tmp_path / "notMNIST_small"
    write_letters(source, rng, 6)
    files = sorted(source.rglob("*.png"))
    packed = {"forward.tar": files, "backward.tar.gz": files[::-1]}
    for name, order in packed.items():
        with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as tar:
            for file in order:
                tar.add(file, f"./{file.relative_to(tmp_path)}" if name == "forward.tar" else file.relative_to(source))
    written = []
    for archive in (source, *(tmp_path / name for name in packed)):
        root = tmp_path / f"root-{archive.name}"
        prepare_not_mnist.main(["--archive", str(archive), "--root", str(root), "--test_share", "0.4"])
        written.append([p.read_bytes() for p in sorted((root / "not-mnist" / "MNIST" / "raw").iterdir())])
    assert len(written[0]) == 4 and written[0] == written[1] == written[2]
