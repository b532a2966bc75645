"""Files made to run code, to fill the memory, or to reach out of their folder: refused in one line, nothing done."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data import prepare_not_mnist
from tests.conftest import SMALL

GB = 2**30


class Evil:
    """Unpickled, it makes the folder `evil`."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "evil"),)


def npy_header(dtype, shape):
    """The bytes of an npy file that claims an array of this type and shape, without its data."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def zeros(size):
    """`size` bytes of zeros, a whole number of MB, deflated: one full block, again and again."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return block * (size // 2**20) + deflate.flush()


def zip_bomb(path, names, size=10 * GB):
    """A zip archive whose members unpack to `size` bytes each."""
    content, directory, packed = io.BytesIO(), b"", zeros(size)
    for name in map(str.encode, names):
        fields = struct.pack("<5H3L2H", 45, 0, 8, 0, 0, 0, len(packed), min(size, 2**32 - 2), len(name), 0)
        directory += (
            b"PK\1\2" + struct.pack("<H", 45) + fields + struct.pack("<3H2L", 0, 0, 0, 0, content.tell()) + name
        )
        content.write(b"PK\3\4" + fields + name + packed)
    at, count = content.tell(), len(names)
    end = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, count, count, len(directory), at, 0)
    path.write_bytes(content.getvalue() + directory + end)


@pytest.fixture
def hostile(refusal, vae_folder, capsys):
    """`hostile(argv, file)`: the command refuses the file, which stands for {} in its arguments; code has not run."""

    def run(argv, file):
        capsys.readouterr()
        err = refusal(argv[0], [word.format(file) for word in argv[1:]])
        assert file.name in err and len(err) < 2000

    vae_folder(7)
    return run


VAE = ["train-bnn.py", *SMALL, "--init_list", "vae", "--vae_list"]
PRETRAINED = ["train-bnn.py", *SMALL, "--init_list", "pretrained", "--pretrained", "{}"]
NPZ = ["train-net.py", *SMALL, "--data", "{}"]
KERNELS = ["train-vae.py", "--kernel_dim", "5", "--train", "{}", "--test", "{}"]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_that_runs_code(hostile, sandbox, legacy):
    file = sandbox / "state.torch"
    torch.save({"x": Evil(sandbox)}, file, _use_new_zipfile_serialization=not legacy)
    hostile(PRETRAINED, file)
    file.write_bytes(pickle.dumps(Evil(sandbox)))
    hostile(PRETRAINED, file)


def test_a_vae_that_runs_code(hostile, sandbox):
    file = sandbox / "vae7x7" / "vae_params.torch"
    torch.save({"x": Evil(sandbox)}, file)
    hostile([*VAE, str(sandbox / "vae7x7")], file)


@pytest.mark.parametrize("name", ["model.torch", "opt.torch"])
def test_a_run_to_resume_that_runs_code(hostile, script, sandbox, name):
    root = script("train-bnn.py").main([*SMALL, "--epochs", "1", "--ens", "1"]).root
    torch.save({"state": Evil(sandbox)}, root / name)
    hostile(["train-bnn.py", *SMALL, "--resume", str(root)], root / name)


def test_a_run_to_continue_that_runs_code(hostile, script, sandbox):
    root = script("train-bnn.py").main([*SMALL, "--epochs", "1", "--ens", "1"]).root
    torch.save({"states": Evil(sandbox)}, root / "checkpoint.torch")
    hostile(["train-bnn.py", "--continue", str(root)], root / "checkpoint.torch")
    (root / "params.yaml").write_text(f"name: !!python/object/apply:os.mkdir ['{sandbox}/evil']\n")
    hostile(["train-bnn.py", "--continue", str(root)], root / "params.yaml")


def test_a_checkpoint_with_senseless_values(hostile, script, sandbox):
    root = script("train-bnn.py").main([*SMALL, "--epochs", "1", "--ens", "1"]).root
    state = torch.load(root / "checkpoint.torch", weights_only=True)
    for change in ({"epoch": -1}, {"order": torch.zeros(2, 2)}, {"random": {}}, {"states": {}}, {"step": "1"}):
        torch.save({**state, **change}, root / "checkpoint.torch")
        hostile(["train-bnn.py", "--continue", str(root)], root / "checkpoint.torch")


YAML = [
    "epochs: !!python/object/apply:os.mkdir ['{}/evil']\n",
    "epochs: !!python/name:os.system\n",
    "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "[" * 100_000,
    "x: " + "y" * 2_000_000,
]


@pytest.mark.parametrize("text", YAML, ids=["apply", "name", "aliases", "depth", "size"])
def test_a_yaml_file(hostile, sandbox, text):
    for file, argv in (
        (sandbox / "config.yaml", ["train-bnn.py", "--config", "{}"]),
        (sandbox / "vae7x7" / "params.yaml", [*VAE, str(sandbox / "vae7x7")]),
    ):
        file.write_text(text.replace("{}", str(sandbox)))
        hostile(argv, file)


def test_kernels_that_run_code(hostile, sandbox):
    file = sandbox / "x.npy"
    np.save(file, np.array([Evil(sandbox)] * 10, dtype=object), allow_pickle=True)
    hostile(KERNELS, file)
    with open(file, "wb") as archive:
        np.savez(archive, x=np.array([Evil(sandbox)], dtype=object))
    hostile(KERNELS, file)
    file.write_bytes(pickle.dumps(Evil(sandbox)))
    hostile(KERNELS, file)


@pytest.mark.parametrize(
    "shape", ["(2000000000, 1, 5, 5)", "(-1, 1, 5, 5)", "(10**99, 1, 5, 5)", f"({10**30}, 1, 5, 5)"]
)
def test_kernels_that_the_file_does_not_hold(hostile, sandbox, shape):
    (sandbox / "x.npy").write_bytes(npy_header("<f4", shape))
    hostile(KERNELS, sandbox / "x.npy")


def test_images_that_run_code(hostile, sandbox):
    file = sandbox / "x.npz"
    evil, labels = np.array([Evil(sandbox)] * 10, dtype=object), np.arange(10)
    np.savez(file, train_images=evil, train_labels=labels)
    hostile(NPZ, file)
    np.savez(file, train_images=np.zeros((10, 28, 28), np.uint8), train_labels=evil)
    hostile(NPZ, file)
    file.write_bytes(pickle.dumps(Evil(sandbox)))
    hostile(NPZ, file)


@pytest.mark.parametrize("shape", ["(2000000000, 28, 28)", "(-1, 28, 28)", f"({10**30}, 28, 28)"])
def test_images_that_the_file_does_not_hold(hostile, sandbox, shape):
    with zipfile.ZipFile(sandbox / "x.npz", "w") as archive:
        archive.writestr("train_images.npy", npy_header("|u1", shape))
    hostile(NPZ, sandbox / "x.npz")


def test_zip_bombs(hostile, sandbox):
    for argv, name, members in (
        (NPZ, "x.npz", ["train_images.npy", "train_labels.npy"]),
        (PRETRAINED, "state.torch", ["archive/data.pkl", "archive/data/0", "archive/version"]),
        (KERNELS, "x.npy", ["x.npy"]),
    ):
        file = sandbox / name
        zip_bomb(file, members, 3 * GB)
        assert file.stat().st_size < 50e6
        hostile(argv, file)


def test_tensors_larger_than_their_file(hostile, sandbox):
    file = sandbox / "state.torch"
    for tensor in (
        torch.zeros(1).expand(10**6, 10**6),
        torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), [1.0], (10**9, 10**9)),
    ):
        torch.save({"classifier.bias": tensor}, file)
        hostile(PRETRAINED, file)


def png(path, letter):
    """A 28x28 PNG of its own for each letter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((28, 28), ord(letter), np.uint8)).save(path)
    return path


def test_an_archive_that_reaches_out_of_its_folder(sandbox, capsys):
    """Members with `../` in their names, absolute ones, links and devices: nothing is written but the data set."""
    secret = png(sandbox / "secret" / "z.png", "z")
    archive = sandbox / "letters.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for i in range(4):
            for letter in "ABCDEFGHIJ":
                image = png(sandbox / "images" / letter / f"{i}.png", chr(ord(letter) + 20 * i))
                tar.add(image, f"../../evil/{letter}/{i}.png" if i % 2 else f"/evil/{letter}/{i}.png")
        for kind, target in ((tarfile.SYMTYPE, secret), (tarfile.LNKTYPE, secret), (tarfile.FIFOTYPE, "")):
            member = tarfile.TarInfo("A/link.png")
            member.type, member.linkname = kind, str(target)
            tar.addfile(member)
    root = sandbox / "out"
    before = set(sandbox.rglob("*"))
    prepare_not_mnist.main(["--archive", str(archive), "--root", str(root), "--test_share", "0.5"])
    capsys.readouterr()
    written = {p for p in set(sandbox.rglob("*")) - before if p.is_file()}
    assert {p.parent for p in written} == {root / "not-mnist" / "MNIST" / "raw"}
    pixels = {image for p in written if "images" in p.name for image in p.read_bytes()[16:]}
    assert len(pixels) == 40 and ord("z") not in pixels


def test_an_archive_of_huge_members(sandbox, capsys):
    """A PNG that says it is 10 GB, and one whose pixels would fill the memory, are passed over."""
    archive = sandbox / "letters.tar.gz"
    bomb = io.BytesIO()
    Image.new("L", (1, 1)).save(bomb, "PNG")
    large = bytearray(bomb.getvalue())
    large[16:24] = struct.pack(">2L", 100_000, 100_000)
    large[29:33] = struct.pack(">L", zlib.crc32(large[12:29]))
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("A/0.png")
        member.size = len(large)
        tar.addfile(member, io.BytesIO(large))
        header = tarfile.TarInfo("A/1.png")
        header.size = 10 * GB
        tar.fileobj.write(header.tobuf(tarfile.PAX_FORMAT))
    with pytest.raises(SystemExit) as stop:
        prepare_not_mnist.main(["--archive", str(archive), "--root", str(sandbox / "out")])
    assert stop.value.code == 2 and "--archive" in capsys.readouterr().err and not (sandbox / "out").exists()


def test_nested_values(hostile, sandbox):
    """No nested values, and no other keys than words."""
    file = sandbox / "config.yaml"
    for content in ({"hid_dim": [[1, 2], 3]}, {("a", "b"): 1}):
        file.write_text(yaml.dump(content))
        hostile(["train-bnn.py", "--config", "{}"], file)
