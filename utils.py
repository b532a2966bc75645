"""Data sets, the few-shot split, kernels in and out of networks, and loading kernel VAEs and flows."""

import contextlib
import ctypes
import math
import os
import random
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from data.prepare_mnist import prepare, read_idx_bytes
from models.bayes import BayesConv2d, BayesLayer
from models.cifarnet import CIFARNet, CIFARNetNew
from models.configs import INIT_NEEDS, MODELS, PRIOR_NEEDS
from models.fconv import FConv, FConv3x3
from models.flow import KernelFlow
from models.network import ConvNet
from models.priors import PRIORS, Prior, PriorOptions, Sources
from models.vae import VAES, KernelVAE
from runs import UserError, data_root, read_yaml, variance

CROP_PADDING = 4  # pixels on each side
CACHED_IMAGES = 100  # whose maps in an fconv fit a core's share of the cache
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
SHOWN_KERNELS = 64  # of a conv layer, kept of the network as it starts

# By name in `models.configs.MODELS`: from a command's arguments and `ConvNet`'s further options.
NETWORKS: dict[str, Callable[..., ConvNet]] = {
    "fconv": lambda a, **options: FConv(a.net_cfg, a.hid_dim, a.n_classes, **options),
    "fconv3x3": lambda a, **options: FConv3x3(a.net_cfg, a.hid_dim, a.n_classes, **options),
    "cifarnet": lambda a, **options: CIFARNet(a.net_cfg, a.model_size, a.n_classes, **options),
    "cifarnetnew": lambda a, **options: CIFARNetNew(a.net_cfg, a.model_size, a.n_classes, **options),
}


class DataSet(NamedTuple):
    """Images (n, channels, height, width) as uint8 and labels (n,) as int64, on one device."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index) -> "DataSet":
        return DataSet(self.images[index], self.labels[index])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The images at these indices, with pixels as float in [0, 1], and their labels."""
        return self.images[index].float().div_(255), self.labels[index]


def keep_freed_memory(trim: int = 2**31 - 1, mmap: int = 2**30) -> None:
    """Let this process keep up to `trim` bytes that it frees, in pieces of up to `mmap`, where its C library is glibc.

    Memory that is given back and fetched again comes as new pages, whose zeroing takes as long as a layer's arithmetic.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_TRIM_THRESHOLD, trim)
        mallopt(M_MMAP_THRESHOLD, mmap)


def pick_device(name: str) -> torch.device:
    """The device `name`, or for "auto" the first of cuda, mps, cpu that is there. Raises UserError where it is not.

    A process that computes on a CPU keeps the memory it frees.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in there.items() if is_there)
    if not there[name]:
        raise UserError(f"--device: found {name}, expected one of {', '.join(k for k, v in there.items() if v)} here")
    if name == "cpu":
        keep_freed_memory()
    return torch.device(name)


def seed_all(seed: int) -> None:
    """Seed torch's generators of every device, NumPy's and Python's."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass in `precision`, "fp32" or "bf16". Raises UserError where the device has no bf16."""
    cpu_capabilities = getattr(torch.cpu, "get_capabilities", dict)  # not in older versions
    there = {
        # Elsewhere bfloat16 is emulated, and slower than float32.
        "cpu": lambda: any(has for name, has in cpu_capabilities().items() if "bf16" in name),
        "cuda": torch.cuda.is_bf16_supported,
        "mps": torch.backends.mps.is_available,
    }
    if precision == "bf16" and not there[device.type]():
        raise UserError(f"--precision: found bf16, expected fp32: this {device.type} does not compute in bfloat16")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def predict(
    function: Callable[[Tensor, torch.Generator], Tensor], data: DataSet, batch_size: int, precision: str = "fp32"
) -> list[Tensor]:
    """`function(images, generator)` for each batch of `data`, in order, without gradients and in `precision`.

    On a CPU as many batches as torch has threads are computed side by side, with one thread each: so all cores are busy
    with what torch does in one, such as noise, too. A batch is at most of CACHED_IMAGES then.
    Each batch has its own generator, seeded from torch's global one, so the noise does not depend on the threads.
    """
    device, threads = data.labels.device, torch.get_num_threads()
    workers, size = (threads, min(batch_size, CACHED_IMAGES)) if device.type == "cpu" else (1, batch_size)
    batches = torch.arange(len(data.labels), device=device).split(size)

    @torch.no_grad()
    def one(index: Tensor, seed: int) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        with autocast(precision, device):
            return function(data.batch(index)[0], generator)

    seeds = torch.randint(2**62, (len(batches),)).tolist()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            results = pool.map(one, batches, seeds)
            return list(tqdm(results, desc="test", total=len(batches), leave=False, delay=2, disable=None))
    finally:
        torch.set_num_threads(threads)  # it was also set for threads to come


def compiled(function: Callable, device: torch.device) -> Callable:
    """`function` by `torch.compile`. Raises UserError where that does not work on `device`."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except Exception as error:  # no compiler, or one that fails: torch raises different things
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--compile: found 1, expected 0: torch.compile does not work here ({reason})") from None
    return torch.compile(function)


def parse_idx(content: bytes, what: str) -> np.ndarray:
    """The uint8 array in the bytes of an IDX file. Raises UserError, which names the file as `what`."""
    rank = content[3] if content[:3] == b"\x00\x00\x08" and content[3:4] in (b"\1", b"\3") else 0
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    data = np.frombuffer(content, np.uint8, offset=min(4 + 4 * rank, len(content)))
    if rank == 0 or len(content) < 4 + 4 * rank or data.size != math.prod(shape):
        raise UserError(f"{what}: not an IDX file of bytes: {len(content)} bytes found, header says {shape}")
    return data.reshape(shape)


def load_data(name: str) -> tuple[DataSet, DataSet]:
    """Train and test set `name` from $DATA_ROOT (default data/), on the CPU; fetched where it is missing.

    "not-mnist" is not fetched but made. Raises UserError where the files are missing and cannot be had, or hold
    something else.
    """
    if name not in ("mnist", "not-mnist"):
        return load_torchvision(name)
    root = data_root()
    if name == "mnist":
        files = prepare(root)
    else:
        raw = root / "not-mnist" / "MNIST" / "raw"
        parts = [f"{p}-{k}-ubyte" for p in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
        try:
            files = {part: read_idx_bytes(raw / part) for part in parts}
        except OSError as error:
            raise UserError(f"--data not-mnist: {error}; make it with python data/prepare_not_mnist.py") from None

    def part(prefix: str) -> DataSet:
        images = parse_idx(files[f"{prefix}-images-idx3-ubyte"], f"{name} {prefix} images")
        labels = parse_idx(files[f"{prefix}-labels-idx1-ubyte"], f"{name} {prefix} labels")
        if images.ndim != 3 or labels.shape != images.shape[:1] or not len(labels):
            raise UserError(
                f"{name} {prefix}: found images {images.shape} and labels {labels.shape}, expected (n, h, w), (n,)"
            )
        return DataSet(torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.astype(np.int64)))

    return part("train"), part("t10k")


def load_torchvision(name: str) -> tuple[DataSet, DataSet]:
    """A colour data set by torchvision, which fetches it where it is missing and checks its md5 sums.

    "cifar5" is CIFAR-10's classes 0-4, "cifar5-rest" its classes 5-9 as 0-4.
    """
    from torchvision import datasets

    if name == "svhn":
        folder, files = data_root() / "svhn", "train_32x32.mat and test_32x32.mat"
        parts = [partial(datasets.SVHN, folder, split=split) for split in ("train", "test")]
    else:
        cls = datasets.CIFAR100 if name == "cifar100" else datasets.CIFAR10
        folder, files = data_root(), cls.filename
        parts = [partial(cls, folder, train=train) for train in (True, False)]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            loaded = [part(download=True) for part in parts]
    except Exception as error:  # what a failed download or a damaged file raises differs between sources
        reason = " ".join(str(error).split())
        raise UserError(f"--data {name}: cannot be fetched or read ({reason}); put {files} in {folder}") from None

    def tensors(data) -> DataSet:
        images = torch.from_numpy(data.data)
        labels = torch.as_tensor(data.labels if name == "svhn" else data.targets, dtype=torch.int64)
        images = images if name == "svhn" else images.permute(0, 3, 1, 2).contiguous()
        if name.startswith("cifar5"):
            first = 5 if name == "cifar5-rest" else 0
            mine = (labels >= first) & (labels < first + 5)
            return DataSet(images[mine], labels[mine] - first)
        return DataSet(images, labels)

    train, test = map(tensors, loaded)
    return train, test


def augment(images: Tensor) -> Tensor:
    """Each image (n, c, h, w) padded by its reflection, cropped to its size at random, and flipped half of the time.

    The draws, from torch's global generator, are made on the images' device.
    """
    n, _, h, w = images.shape
    padded = F.pad(images, (CROP_PADDING,) * 4, mode="reflect")
    top, left = torch.randint(2 * CROP_PADDING + 1, (2, n, 1), device=images.device)
    flip = torch.rand(n, 1, device=images.device) < 0.5
    rows = top + torch.arange(h, device=images.device)
    columns = left + torch.arange(w, device=images.device)
    columns = torch.where(flip, columns.flip(1), columns)
    image = torch.arange(n, device=images.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def few_shot_split(labels: Tensor, num_examples: int, seed: int) -> Tensor:
    """Indices (num_examples,) of a class-stratified subset by scikit-learn's `train_test_split`, as published.

    Raises UserError where the classes do not fit into `num_examples`, or the data set does not hold as many.
    """
    from sklearn.model_selection import train_test_split

    classes = len(labels.unique())
    if not classes <= num_examples <= len(labels) - classes:
        raise UserError(
            f"--num_examples: found {num_examples}, expected {classes} (one per class) to {len(labels) - classes}"
        )
    try:
        index, _ = train_test_split(
            np.arange(len(labels)), train_size=num_examples, random_state=seed, stratify=labels.cpu().numpy()
        )
    except ValueError as error:  # a class with a single image, for one
        raise UserError(f"--num_examples: found {num_examples}: {error}") from None
    return torch.from_numpy(index)


def load_network_data(args, device: torch.device) -> tuple[DataSet, DataSet]:
    """Train and test set on `device` as the options data, num_examples, data_split_seed and n_classes say."""
    train, test = load_data(args.data)
    expected = MODELS[args.model].image_shape
    for part in (train, test):
        found = tuple(part.images.shape[1:])
        if found != expected:
            raise UserError(f"--data {args.data}: found images of {found}, expected {expected} for {args.model}")
    top = int(max(train.labels.max(), test.labels.max()))
    if top >= args.n_classes:
        raise UserError(f"--n_classes: found {args.n_classes}, expected at least {top + 1} for {args.data}")
    if args.num_examples:
        train = train[few_shot_split(train.labels, args.num_examples, args.data_split_seed)]
    return DataSet(*(t.to(device) for t in train)), DataSet(*(t.to(device) for t in test))


# --- files of tensors ---------------------------------------------------------------------------------------------


def check_archive(path: str | Path) -> None:
    """Raises ValueError where a zip archive unpacks to more than it holds, as none of torch's does."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if compressed or sum(member.file_size for member in members) > os.path.getsize(path):
            raise ValueError("it is compressed")


def leaves(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What nested dicts, lists and tuples hold, each with the keys that lead to it."""
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else None
    if items is None:
        yield name, state
    else:
        for key, value in items:
            yield from leaves(value, f"{name}.{key}" if name else str(key))


def load_file(path: str | Path, what: str) -> dict[str, Any]:
    """A dict saved by torch, loaded as data on the CPU, its tensors dense. Raises UserError, which names the file."""
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in leaves(state):
            # A tensor may claim more elements than the file holds numbers, and would be written out in full later.
            if isinstance(value, Tensor) and (
                value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes()
            ):
                raise UserError(f"{what}: {path}: {name} is not a dense tensor")
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}, expected a state dict at {path}") from None
    except Exception:  # a damaged file fails in torch's reader in many ways, and none of them matters here
        raise UserError(f"{what}: {path} cannot be loaded as data, expected a state dict saved by torch") from None
    if not isinstance(state, dict):
        raise UserError(f"{what}: {path} holds a {type(state).__name__}, expected a state dict")
    return state


def load_state(path: str | Path, what: str) -> dict[str, Tensor]:
    """A network's state dict from a file, its tensors finite. Raises UserError, which names the file as `what`."""
    state = load_file(path, what)
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{what}: {path} holds {name!r}: {type(value).__name__}, expected names and dense tensors")
        if not torch.isfinite(value).all():
            raise UserError(f"{what}: {path}: {name} has values that are not finite")
    return state


def fill(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """`module.load_state_dict(state)`, names and shapes checked. Raises UserError, which names the file as `what`."""
    own = module.state_dict()
    odd = sorted(own.keys() ^ state.keys())
    if odd:
        raise UserError(f"{what}: {odd[0]} is {'missing' if odd[0] in own else 'not expected'} in the state dict")
    for name, value in state.items():
        if value.shape != own[name].shape or value.is_floating_point() != own[name].is_floating_point():
            found, expected = (f"{t.dtype} of shape {tuple(t.shape)}" for t in (value, own[name]))
            raise UserError(f"{what}: {name} is {found}, expected {expected}")
    module.load_state_dict(state)


def resume(folder: str, net: nn.Module, optimizer: torch.optim.Optimizer, reverse: nn.ModuleDict | None = None) -> None:
    """Start from the model, trained reverse models and the optimizer of the run directory `folder` (option `resume`).

    Raises UserError where it holds those of another network.
    """
    fill(net, load_state(Path(folder) / "model.torch", "--resume"), f"--resume {folder}/model.torch")
    if reverse:
        fill(reverse, load_state(Path(folder) / "reverse.torch", "--resume"), f"--resume {folder}/reverse.torch")
    state = load_file(Path(folder) / "opt.torch", "--resume")
    load_optimizer(optimizer, state, f"--resume {folder}/opt.torch")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], what: str) -> None:
    """`optimizer.load_state_dict(state)`. Raises UserError, which names the file as `what`."""
    try:
        optimizer.load_state_dict(state)
        for parameter, moments in optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                if moments[name].shape != parameter.shape or not torch.isfinite(moments[name]).all():
                    raise ValueError(
                        f"{name} of {tuple(moments[name].shape)} for {tuple(parameter.shape)} or not finite"
                    )
    except Exception as error:
        raise UserError(f"{what}: not an optimizer state of this network ({error})") from None


# --- checkpoints --------------------------------------------------------------------------------------------------


def training_state(tracked: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds of the tracked modules, optimizers and tensors, and every random state."""
    states = {name: thing if isinstance(thing, Tensor) else thing.state_dict() for name, thing in tracked.items()}
    legacy = np.random.get_state()  # of the global generator: name, key, position, and a cached normal draw
    return {
        "states": states,
        "random": {
            "python": random.getstate(),
            "numpy": (legacy[0], legacy[1].tolist(), *legacy[2:]),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        },
    }


def restore(
    state: dict[str, Any], tracked: dict[str, Any], device: torch.device, what: str
) -> tuple[int, int, int, Tensor | None]:
    """Fill the tracked things and set every random state as `training_state` gave them.

    Returns epochs, steps and log rows of the checkpoint, and the order of the training set that is left of the epoch.
    Raises UserError, which names the file as `what`, where it is not a checkpoint of these things.
    """
    try:
        epoch, step, rows, order = (state[key] for key in ("epoch", "step", "rows", "order"))
        if not all(isinstance(n, int) and n >= 0 for n in (epoch, step, rows)):
            raise ValueError(f"epoch {epoch!r}, step {step!r}, rows {rows!r}")
        if state["states"].keys() != tracked.keys():
            raise ValueError(f"found {', '.join(map(str, state['states']))}, expected {', '.join(tracked)}")
        for name, thing in tracked.items():
            value = state["states"][name]
            if isinstance(thing, nn.Module):
                fill(thing, value, f"{what}: {name}")
            elif isinstance(thing, torch.optim.Optimizer):
                load_optimizer(thing, value, f"{what}: {name}")
            elif value.shape == thing.shape and value.dtype == thing.dtype:
                thing.copy_(value)
            else:
                raise ValueError(f"{name} of shape {tuple(value.shape)}")
        if order is not None:
            order = order.to(device)
            if order.ndim != 1 or order.dtype != torch.int64:
                raise ValueError(f"order of shape {tuple(order.shape)} and {order.dtype}")
        states = state["random"]
        random.setstate(tuple(tuple(part) if isinstance(part, list) else part for part in states["python"]))
        np.random.set_state(states["numpy"])
        torch.set_rng_state(states["torch"])
        if device.type == "cuda":
            torch.cuda.set_rng_state_all(states["cuda"])
        if device.type == "mps":
            torch.mps.set_rng_state(states["mps"])
    except UserError:
        raise
    except Exception as error:  # what is missing or of another kind fails in many ways
        raise UserError(f"{what}: not a checkpoint of this run ({error})") from None
    return epoch, step, rows, order


# --- VAEs and flows -----------------------------------------------------------------------------------------------


def load_params(path: str | Path, kind: str, size: str, what: str) -> dict[str, Any]:
    """`params.yaml` of the folder of a VAE or flow (`kind`), its sizes and `size` checked. Raises UserError."""
    file = f"{what} {Path(path) / 'params.yaml'}"
    params = read_yaml(Path(path) / "params.yaml", file)
    if params.get("kind", "vae") != kind:
        raise UserError(f"{file}: found a {params['kind']}, expected a {kind}")
    for key in (size, "hidden_dim", "kernel_dim"):
        if not isinstance(params.get(key), int) or not 0 < params[key] <= 4096:
            raise UserError(f"{file}: {key} is {params.get(key)!r}, expected a whole number from 1 to 4096")
    if params["kernel_dim"] not in VAES:
        raise UserError(f"{file}: kernel_dim is {params['kernel_dim']}, expected one of {sorted(VAES)}")
    return params


def fill_frozen(model: nn.Module, file: Path, device: torch.device | str, what: str) -> None:
    """Fill a VAE or flow from a file, move it to `device`, freeze it, set it to eval mode. Raises UserError."""
    fill(model, load_state(file, what), f"{what} {file}")
    model.to(device).eval().requires_grad_(False)


def load_vae(path: str | Path, device: torch.device | str = "cpu", what: str = "VAE") -> KernelVAE:
    """The VAE in a folder with `params.yaml` (z_dim, hidden_dim, kernel_dim, var) and `vae_params.torch`.

    It comes frozen and in eval mode, on `device`. Raises UserError where the folder does not hold a VAE.
    """
    params = load_params(path, "vae", "z_dim", what)
    try:
        var = variance(str(params.get("var", "train")))
    except Exception as error:
        raise UserError(f"{what} {Path(path) / 'params.yaml'}: var: {error}") from None
    vae = VAES[params["kernel_dim"]](params["z_dim"], params["hidden_dim"], var)
    fill_frozen(vae, Path(path) / "vae_params.torch", device, what)
    return vae


def load_flow(path: str | Path, device: torch.device | str = "cpu", what: str = "flow") -> KernelFlow:
    """The flow in a folder with `params.yaml` (hidden_dim, kernel_dim, transforms) and `flow_params.torch`.

    It comes frozen and in eval mode, on `device`. Raises UserError where the folder does not hold a flow.
    """
    params = load_params(path, "flow", "transforms", what)
    flow = KernelFlow(params["kernel_dim"], params["hidden_dim"], params["transforms"])
    fill_frozen(flow, Path(path) / "flow_params.torch", device, what)
    return flow


# --- kernels ------------------------------------------------------------------------------------------------------


def load_kernels(path: str | Path, what: str, kernel_dim: int | None = None) -> Tensor:
    """Kernels (n, 1, k, k) in float32 from an npy file. Raises UserError, which names the file as `what`."""
    try:
        # As a map of the file: its header may claim more than there is memory.
        kernels = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or 'not an npy file'}, expected kernels at {path}") from None
    except (ValueError, EOFError, OverflowError, MemoryError, zipfile.BadZipFile):
        raise UserError(f"{what}: {path} is not a plain npy file of numbers") from None
    k = kernel_dim or (kernels.shape[-1] if getattr(kernels, "ndim", 0) == 4 else "k")
    shape = getattr(kernels, "shape", None)
    if shape is None or len(shape) != 4 or shape[1:] != (1, k, k) or not shape[0] or kernels.dtype.kind != "f":
        found = f"{shape} of {kernels.dtype}" if shape is not None else "an archive"
        raise UserError(f"{what}: {path} holds {found}, expected floats of shape (n, 1, {k}, {k}), n > 0")
    with np.errstate(over="ignore"):
        kernels = np.array(kernels, dtype=np.float32, order="C")
    if not np.isfinite(kernels).all():
        raise UserError(f"{what}: {path} has values that are not finite in float32")
    return torch.from_numpy(kernels)


def get_kernels(state: dict[str, Tensor]) -> dict[int, Tensor]:
    """All square convolution kernels of a network's state dict, by size k: (n, 1, k, k), layers in order.

    Of a Bayesian layer they are the posterior means.
    """
    found: dict[int, list[Tensor]] = {}
    for name, weight in state.items():
        if (
            name.endswith(".weight")
            and weight.ndim == 4
            and weight.shape[2] == weight.shape[3]
            and not name.endswith(".var.weight")
        ):
            k = weight.shape[-1]
            found.setdefault(k, []).append(weight.reshape(-1, 1, k, k))
    return {k: torch.cat(kernels) for k, kernels in found.items()}


def shown_kernels(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Kernels (n, 1, k, k) of each conv layer in a network's state dict, by the layer's name.

    At most SHOWN_KERNELS of a layer, evenly spaced over it: the same ones before and after a training.
    """
    shown = {}
    for name, weight in state.items():
        if name.endswith(".weight") and weight.ndim == 4 and not name.endswith(".var.weight"):
            kernels = weight.flatten(0, 1).unsqueeze(1)
            index = torch.linspace(0, len(kernels) - 1, min(SHOWN_KERNELS, len(kernels))).long()
            shown[name.removesuffix(".weight").removesuffix(".mean")] = kernels[index].cpu().contiguous()
    return shown


def prune_kernels(kernels: Tensor, min_norm: float) -> Tensor:
    """The kernels, of (n, 1, k, k), whose Euclidean norm is at least `min_norm`."""
    return kernels[kernels.flatten(1).norm(dim=1) >= min_norm]


def drop_near_duplicates(kernels: Tensor, tolerance: float, block: int = 1024) -> Tensor:
    """The kernels, of (n, 1, k, k), without those close to an earlier one that is kept.

    Close is at a Euclidean distance of at most `tolerance` times the larger norm of the two.
    """
    w = kernels.flatten(1)
    norms = w.norm(dim=1)
    keep = torch.ones(len(w), dtype=torch.bool)
    for start in range(0, len(w), block):
        rows = slice(start, start + block)
        close = torch.cdist(w[rows], w) <= tolerance * torch.maximum(norms[rows, None], norms)
        for i, j in close.nonzero().tolist():  # by i, then j
            if j < start + i and keep[j]:
                keep[start + i] = False
    return kernels[keep]


def conv_layers(net: nn.Module) -> list[nn.Conv2d | BayesConv2d]:
    """The conv layers of a network's `features`, Bayesian or not, in order."""
    return [layer for layer in net.features if isinstance(layer, nn.Conv2d | BayesConv2d)]


def conv_weight(layer: nn.Conv2d | BayesConv2d) -> nn.Parameter:
    """A conv's weights (out, in, k, k), of a Bayesian one the posterior's means."""
    return layer.mean.weight if isinstance(layer, BayesLayer) else layer.weight


@torch.no_grad()
def init_network(net: nn.Module, args, sources: Sequence[Sources]) -> None:
    """Initialize as `init_list` says; `sources` holds what each conv's start is made from.

    All weights start Xavier normal; then each conv in order is left so ("xavier"), takes decoder means at z ~ N(0, I)
    ("vae"), draws from a flow ("flow"), random rows of `filters_list` ("filters"), or such rows after the VAE's encoder
    and decoder means ("recon"); "pretrained" fills the whole network from a file.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
    if args.init_list == ["pretrained"]:
        load_pretrained(net, load_state(args.pretrained, "--pretrained"), f"--pretrained {args.pretrained}")
        return
    for i, (kind, layer, source) in enumerate(zip(args.init_list, conv_layers(net), sources, strict=False), 1):
        weight = conv_weight(layer)
        n = weight.shape[0] * weight.shape[1]
        if kind == "vae":
            kernels = source.vae.sample_means(n)
        elif kind == "flow":
            kernels = source.flow.sample(n)
        elif kind in ("filters", "recon"):
            found = len(source.filters)
            if found < n:
                print(f"{args.filters_list[i - 1]}: {found} kernels for conv {i}'s {n}, drawn with replacement")
            rows = torch.randperm(found)[:n] if found >= n else torch.randint(found, (n,))
            kernels = source.filters[rows.to(source.filters.device)]
            if kind == "recon":
                kernels = torch.cat([source.vae.decode(source.vae.encode(w)[0])[0] for w in kernels.split(1024)])
        else:
            continue
        weight.copy_(kernels.view_as(weight))


def load_pretrained(net: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Fill `net` from a state dict; a deterministic conv's weights go into a Bayesian one's means."""
    own = net.state_dict()
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{layer}.mean.{kind}" if name not in own and f"{layer}.mean.{kind}" in own else name] = value
    spread = (".var.weight", ".w_alpha")
    keep = {name: value for name, value in own.items() if name.endswith(spread) and name not in renamed}
    fill(net, renamed | keep, what)


def build_priors(args, kinds: Sequence[str], sources: Sequence[Sources]) -> list[Prior]:
    """The prior of each conv layer, as the options of train-bnn.py say. Raises UserError."""
    config = MODELS[args.model].config(args.net_cfg)
    given = {name: value for name, value in vars(args).items() if name in PriorOptions._fields}
    options = PriorOptions(**given, truncated=config.truncated)
    priors = []
    for i, (kind, source) in enumerate(zip(kinds, sources, strict=True), 1):
        try:
            priors.append(PRIORS[kind](options, source))
        except ValueError as error:
            raise UserError(f"prior {kind!r} of conv {i}: {error}") from None
    return priors


def load_sources(args, device: torch.device, priors: Sequence[str] = ()) -> list[Sources]:
    """What the init and the prior of each conv layer need, loaded and checked against the layer's kernel size.

    Raises UserError where a file is not there, holds something else, or is of another kernel size.
    """
    sources = []
    for i, size in enumerate(MODELS[args.model].kernel_sizes):
        kinds = [INIT_NEEDS[kind] for kind in args.init_list[i : i + 1]] + [
            PRIOR_NEEDS[kind] for kind in priors[i : i + 1]
        ]
        needs = {option for kind in kinds for option in kind}
        found: dict[str, Any] = {}
        for option, load in (("vae_list", load_vae), ("flow_list", load_flow)):
            if option in needs:
                path = getattr(args, option)[i]
                model = load(path, device, what=f"--{option} entry {i + 1}")
                k = model.kernel_dim
                if k != size:
                    raise UserError(
                        f"--{option}: {path} is of {k}x{k} kernels, expected {size}x{size} for conv {i + 1}"
                    )
                found[option.removesuffix("_list")] = model
        if "filters_list" in needs:
            what = f"--filters_list entry {i + 1}"
            found["filters"] = load_kernels(args.filters_list[i], what, size).to(device)
        sources.append(Sources(**found))
    return sources
