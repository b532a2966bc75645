"""Data sets, the few-shot split, predictions; kernels: load, extract, prune; loading of VAEs, flows and networks."""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from data.split import few_shot
from models.bayes import Mode, set_mode
from models.build import build_network, build_vae
from models.configs import DATA_SETS, INITS, MODELS, PRIORS, SOURCES, VAES, imported
from models.flow import KernelFlow
from models.network import ConvNet
from models.vae import KernelVAE
from runs.checkpoint import check_state, fingerprint, load_checked, load_state, stored_inputs
from runs.device import autocast
from runs.directory import data_root
from runs.errors import UserError, user_error
from runs.files import read_yaml
from runs.types import variance_type

CACHED_IMAGES = 100  # images per batch on a CPU; their maps in an fconv fit a core's share of the cache
SHOWN_KERNELS = 64  # kernels of a conv layer that a run saves before training
TEST_SHARE = 0.2  # share of the kernels in the test set


class DataSet(NamedTuple):
    """Images (n, channels, height, width) as uint8 and labels (n,) as int64, on one device.

    In place of images it can hold features of them (n, features), as float, for a classifier alone.
    """

    images: Tensor
    labels: Tensor

    def __getitem__(self, index) -> "DataSet":
        return DataSet(self.images[index], self.labels[index])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The images at these indices, with pixels as float in [0, 1], or the features; and their labels."""
        images = self.images[index]
        return images if images.is_floating_point() else images.float().div_(255), self.labels[index]


# --- data sets ----------------------------------------------------------------------------------------------------


def load_data(
    name: str, shape: tuple[int, int, int] | None = None, test_fraction: float = TEST_SHARE, seed: int = 42
) -> tuple[DataSet, DataSet]:
    """Training and test part of a data set, on the CPU: one of `models.configs.DATA_SETS`, an npz file or a folder.

    Images of a file or folder are converted to `shape` (channels, height, width), which a folder needs, and their test
    part may be empty. `test_fraction` and `seed` split a folder without a test part. Raises UserError where files are
    damaged, or cannot be found or fetched.
    """
    try:
        if name in DATA_SETS:
            parts = imported(DATA_SETS[name])(data_root())
        else:
            parts = imported("data.images:load")(Path(name), shape, test_fraction, seed)
    except OSError as error:
        raise UserError(f"--data {name}: {error.strerror if error.filename == name else error}") from None
    except ValueError as error:
        raise UserError(f"--data {name}: {str(error).removeprefix(f'{name}: ')}") from None
    train, test = (DataSet(torch.tensor(images), torch.tensor(labels)) for images, labels in parts)
    return train, test


def folder_split(params: Mapping[str, Any]) -> tuple[float, int]:
    """How a run splits a folder without a test part: share of the test part, and seed."""
    return params.get("test_fraction") or TEST_SHARE, params.get("data_split_seed", 42)


def load_run_data(params: Mapping[str, Any]) -> tuple[DataSet, DataSet]:
    """Training and test part, as of `load_data`, for the arguments of a network script's run."""
    return load_data(params["data"], MODELS[params["model"]].image_shape, *folder_split(params))


def check_test_data(params: Mapping[str, Any], train: DataSet, test: DataSet) -> DataSet:
    """`test`, if both parts are those of the run. Raises UserError if they have changed, or without test images."""
    label = f"--data {params['data']}: found"
    if not len(test.labels):
        raise UserError(f"{label} no test images, expected some")
    if params.get("num_examples"):
        train = train[few_shot_split(train.labels, params["num_examples"], params["data_split_seed"])]
    if stored_inputs(params).get("data") not in (None, fingerprint([*train, *test])):
        raise UserError(
            f"{label} other images than those of the run, expected its own: a test image may be one it learnt"
        )
    return test


def load_split(args: Namespace, device: torch.device) -> tuple[DataSet, DataSet]:
    """Training and test part of the data set of a network script's options, on `device`.

    With `num_examples` the training part is a few-shot split. `args` gets `classes`, the names of a folder's classes,
    and `n_classes` if that is None. Raises UserError where images or labels do not fit the network.
    """
    expected = MODELS[args.model].image_shape
    train, test = load_run_data(vars(args))
    for part in (train, test):
        found = tuple(part.images.shape[1:])
        if found != expected:
            raise UserError(f"--data {args.data}: found images of {found}, expected {expected} for {args.model}")
    top = int(torch.cat([train.labels, test.labels]).max())
    args.n_classes = args.n_classes or max(top + 1, 2)
    if top >= args.n_classes:
        raise UserError(f"--n_classes: found {args.n_classes}, expected at least {top + 1} for {args.data}")
    if args.data not in DATA_SETS and not args.data.endswith(".npz"):
        args.classes = imported("data.images:class_names")(Path(args.data))
        if args.n_classes != len(args.classes):
            raise UserError(f"--n_classes: found {args.n_classes}, expected the {len(args.classes)} of {args.data}")
    if args.num_examples:
        train = train[few_shot_split(train.labels, args.num_examples, args.data_split_seed)]
    if len(train.labels) < (least := MODELS[args.model].least_batch):
        raise UserError(f"--data: found {len(train.labels)} training image, expected {least} or more for {args.model}")
    return DataSet(*(t.to(device) for t in train)), DataSet(*(t.to(device) for t in test))


def run_inputs(
    train: DataSet, test: DataSet, sources: Sequence[Mapping[str, Any]], pretrained: str = ""
) -> dict[str, list[nn.Module | Tensor | str]]:
    """What a network's run has loaded, by option, for `runs.loop.Run`: images, labels, and the sources of its convs."""
    weights = load_state(pretrained).values() if pretrained else ()
    inputs: dict[str, list] = {"data": [*train, *test], "pretrained": list(weights)}
    for kind in SOURCES:
        inputs[f"{kind}_list"] = [source[kind] for source in sources if kind in source]
    inputs["vae_list"] += [str(vae.decoder.var) for vae in inputs["vae_list"]]  # not in the state dict
    return inputs


def few_shot_split(labels: Tensor, num_examples: int, seed: int) -> Tensor:
    """`data.split.few_shot` as a tensor. Raises UserError."""
    with user_error("--num_examples:"):
        return torch.from_numpy(few_shot(labels.cpu().numpy(), num_examples, seed))


def predict(
    function: Callable[[Tensor, torch.Generator], Tensor], data: DataSet, batch_size: int, precision: str = "fp32"
) -> list[Tensor]:
    """`function(images, generator)` for each batch of `data`, in order, without gradients and in `precision`.

    On a CPU as many batches as torch has threads are computed side by side, with one thread each, because torch draws
    noise in a single thread. A batch then has at most CACHED_IMAGES images. Each batch has its own generator, seeded
    from torch's global one, so the noise does not depend on the number of threads.
    """
    device, threads = data.labels.device, torch.get_num_threads()
    workers, size = (threads, min(batch_size, CACHED_IMAGES)) if device.type == "cpu" else (1, batch_size)
    batches = torch.arange(len(data.labels), device=device).split(size)

    @torch.no_grad()
    def predict_batch(index: Tensor, seed: int) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        with autocast(precision, device):
            return function(data.batch(index)[0], generator)

    seeds = torch.randint(2**62, (len(batches),)).tolist()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            results = pool.map(predict_batch, batches, seeds)
            return list(tqdm(results, desc="test", total=len(batches), leave=False, delay=2, disable=None))
    finally:
        torch.set_num_threads(threads)  # the initializer also set it for later threads


def predict_log_probs(
    net: ConvNet, data: DataSet, mode: Mode, samples: int, batch_size: int, precision: str = "fp32", seed: int = 0
) -> Tensor:
    """Log probabilities (samples, n, n_classes) of the classes of `data`, with the Bayesian layers in `mode`.

    A network in training mode has its dropout on. In the mode "weights" each sample is one draw of the weights for all
    images, from a generator with this seed. The layers are in the mode "stoch" afterwards.
    """

    def logits(x: Tensor, generator: torch.Generator) -> Tensor:
        return net.sample_logits(x, samples, generator.manual_seed(seed) if mode == "weights" else generator)

    set_mode(net, mode)
    try:
        return F.log_softmax(torch.cat(predict(logits, data, batch_size, precision), 1).float(), 2)
    finally:
        set_mode(net, "stoch")


def features_of(net: ConvNet, data: DataSet, batch_size: int, precision: str = "fp32") -> DataSet:
    """The data with the inputs of the network's classifier in place of images."""
    features = predict(lambda x, _: net.extract(x), data, batch_size, precision)
    return DataSet(torch.cat(features).float(), data.labels)


# --- kernels ------------------------------------------------------------------------------------------------------


def load_kernels(path: str | Path, kernel_dim: int | None = None, norm: float | None = None) -> Tensor:
    """Kernels (n, 1, k, k) in float32 from an npy file, each scaled to `norm`, if it is given.

    Raises UserError, a ValueError, which starts with the path.
    """
    try:
        # Memory-mapped, because the header may claim an array larger than the memory.
        kernels = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'not an npy file'}, expected kernels") from None
    except (ValueError, OverflowError, MemoryError):
        raise UserError(f"{path} is not a plain npy file of numbers") from None
    shape = kernels.shape
    k = kernel_dim or (shape[-1] if len(shape) == 4 else "k")
    if len(shape) != 4 or shape[1:] != (1, k, k) or not shape[0] or kernels.dtype.kind != "f":
        raise UserError(f"{path} holds {shape} of {kernels.dtype}, expected floats of shape (n, 1, {k}, {k}), n > 0")
    with np.errstate(over="ignore"):
        kernels = np.array(kernels, dtype=np.float32, order="C")
    if not np.isfinite(kernels).all():
        raise UserError(f"{path} has values that are not finite in float32")
    if norm:
        norms = np.linalg.norm(kernels.astype(np.float64), axis=(2, 3), keepdims=True)  # float32 squares overflow
        if not norms.all():
            raise UserError(f"{path} has {(norms == 0).sum()} kernels of norm 0, which cannot be scaled, expected none")
        kernels = (kernels * (norm / norms)).astype(np.float32)
    return torch.from_numpy(kernels)


def is_conv_weight(name: str, value: Tensor) -> bool:
    """Whether an entry of a network's state dict holds the weights, or posterior means, of a convolution."""
    return name.endswith(".weight") and value.ndim == 4 and not name.endswith(".var.weight") and ".prior." not in name


def get_kernels(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The kernels (n, 1, k, k) of each conv with square kernels in a network's state dict: "5x5-2" are those of conv 2.

    The kernels of a Bayesian layer are its posterior means.
    """
    weights = [weight for name, weight in state.items() if is_conv_weight(name, weight)]
    square = {i: weight for i, weight in enumerate(weights, 1) if weight.shape[2] == weight.shape[3]}
    return {f"{w.shape[2]}x{w.shape[3]}-{i}": w.flatten(0, 1).unsqueeze(1) for i, w in square.items()}


def kernels_named(networks: Sequence[Mapping[str, Tensor]], name: str) -> list[Tensor]:
    """The kernels (n, 1, k, k) of each network that has them: of one conv, "5x5-2", or of all convs of "5x5"."""
    found = [[w for conv, w in network.items() if name in (conv, conv.split("-")[0])] for network in networks]
    return [torch.cat(kernels) for kernels in found if kernels]


def shown_kernels(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Kernels (n, 1, k, k) of each conv layer in a network's state dict, by the layer's name.

    A layer gives at most SHOWN_KERNELS kernels, at evenly spaced indices: the same before and after training.
    """
    shown = {}
    for name, weight in state.items():
        if is_conv_weight(name, weight):
            kernels = weight.flatten(0, 1).unsqueeze(1)
            index = torch.linspace(0, len(kernels) - 1, min(SHOWN_KERNELS, len(kernels))).long()
            shown[name.removesuffix(".weight").removesuffix(".mean")] = kernels[index].cpu().contiguous()
    return shown


def drop_near_duplicates(kernels: Tensor, tolerance: float, block: int = 1024) -> Tensor:
    """The kernels, of (n, 1, k, k), without those close to an earlier one that is kept.

    Two kernels are close if their Euclidean distance is at most `tolerance` times the larger norm.
    """
    w = kernels.flatten(1)
    norms = w.norm(dim=1)
    keep = torch.ones(len(w), dtype=torch.bool)
    for start in range(0, len(w), block):
        rows = slice(start, start + block)
        close = torch.cdist(w[rows], w) <= tolerance * torch.maximum(norms[rows, None], norms)
        for i, row in enumerate(close, start):
            keep[i] = not (row[:i] & keep[:i]).any()
    return kernels[keep]


def extract_kernels(networks: Sequence[Tensor], min_norm: float, near: float, seed: int) -> dict[str, Tensor]:
    """The kernels of source networks as a data set: pruned, without near-duplicates, split at random.

    Parameters
    ----------
    networks : the kernels (n, 1, k, k) of each network, from `kernels_named`.
    min_norm : kernels of at least this Euclidean norm are kept.
    near : relative distance within which kernels of one network are duplicates (`drop_near_duplicates`).
    seed : seed of the split.

    Returns
    -------
    "train" and "test", 80% and 20% of the kernels, each (n, 1, k, k). Raises ValueError for fewer than 5 kernels.
    """
    pruned = [kernels[kernels.flatten(1).norm(dim=1) >= min_norm] for kernels in networks]
    kept = torch.cat([drop_near_duplicates(kernels, near) for kernels in pruned])
    if len(kept) < 5:
        raise ValueError(f"{min_norm:g} keeps {len(kept)} kernels, expected at least 5 to split")
    order = np.random.default_rng(seed).permutation(len(kept))
    n_test = round(TEST_SHARE * len(kept))
    return {"test": kept[order[:n_test]], "train": kept[order[n_test:]]}


# --- VAEs and flows -----------------------------------------------------------------------------------------------


def load_params(path: str | Path, kind: str, size: str) -> dict[str, Any]:
    """Read params.yaml of a "vae" or "flow" (`kind`) and check its sizes, with the key `size`. Raises UserError."""
    file = Path(path) / "params.yaml"
    params = read_yaml(file)
    if params.get("kind", "vae") != kind:
        raise UserError(f"{file}: found a {params['kind']}, expected a {kind}")
    for key in (size, "hidden_dim", "kernel_dim"):
        if not isinstance(params.get(key), int) or not 0 < params[key] <= 4096:
            raise UserError(f"{file}: {key} is {params.get(key)!r}, expected a whole number from 1 to 4096")
    if params["kernel_dim"] not in VAES:
        raise UserError(f"{file}: kernel_dim is {params['kernel_dim']}, expected one of {sorted(VAES)}")
    return params


def load_frozen(model: nn.Module, file: Path, device: torch.device | str) -> Any:
    """The model with weights from a file, on `device`, frozen and in eval mode. Raises UserError."""
    load_checked(model, load_state(file), str(file))
    return model.to(device).eval().requires_grad_(False)


def load_vae(path: str | Path, device: torch.device | str = "cpu") -> KernelVAE:
    """The VAE in a folder with `params.yaml` (z_dim, hidden_dim, kernel_dim, var) and `vae_params.torch`.

    It is frozen and in eval mode, on `device`. Raises UserError, a ValueError, where the folder does not hold a VAE.
    """
    params = load_params(path, "vae", "z_dim")
    try:
        var = variance_type(str(params.get("var", "train")))
    except Exception as error:
        raise UserError(f"{Path(path) / 'params.yaml'}: var: {error}") from None
    vae = build_vae(params["kernel_dim"], params["z_dim"], params["hidden_dim"], var)
    return load_frozen(vae, Path(path) / "vae_params.torch", device)


def load_flow(path: str | Path, device: torch.device | str = "cpu") -> KernelFlow:
    """The flow in a folder with `params.yaml` (hidden_dim, kernel_dim, transforms) and `flow_params.torch`.

    It is frozen and in eval mode, on `device`. Raises UserError, a ValueError, where the folder does not hold a flow.
    """
    params = load_params(path, "flow", "transforms")
    flow = KernelFlow(params["kernel_dim"], params["hidden_dim"], params["transforms"])
    return load_frozen(flow, Path(path) / "flow_params.torch", device)


def load_network(folder: str | Path, device: torch.device | str = "cpu") -> tuple[ConvNet, dict[str, Any]]:
    """The network of a run directory of train-net.py or train-bnn.py, in eval mode, and the run's arguments.

    `classes` is among the arguments: the names of the classes, numbers where the data set has no names. Bayesian layers
    have their posterior and no prior. Raises UserError where the folder is not such a run directory.
    """
    file = Path(folder) / "params.yaml"
    params = read_yaml(file)
    state = load_state(Path(folder) / "model.torch")
    names = {"do": "do", "log_variance": "logvarinit"}
    options = {name: params[option] for name, option in names.items() if params.get(option)}
    try:
        values = [params[option] for option in ("model", "net_cfg", "hid_dim", "model_size", "n_classes")]
        data = str(params["data"])
        with torch.device("meta"):
            net = build_network(*values, **options, bayesian_classifier=params.get("classifier_prior") == "sn")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{file}: found no arguments of a network: {error!r}") from None
    state = {name: value for name, value in state.items() if ".prior." not in name}
    check_state(net, state, f"{folder}/model.torch")  # before the arguments can ask for memory
    net.to_empty(device=device).load_state_dict(state)
    classes = params.get("classes") or [str(i) for i in range(params["n_classes"])]
    return net.eval(), params | {"data": data, "classes": classes}


def load_sources(args: Namespace, device: torch.device, kernel_sizes: Sequence[int] = ()) -> list[dict[str, Any]]:
    """For each conv layer the VAE, flow and kernels that its initialization and prior need, by name, on `device`.

    `args` are a network script's options, and `priors`. The kernels' sizes are `kernel_sizes`, by default those of the
    `model`. Raises UserError where a file is missing or invalid, or its kernels have another size.
    """
    sources = []
    for i, size in enumerate(kernel_sizes or MODELS[args.model].kernel_sizes):
        choices = ((args.init_list, INITS), (args.priors, PRIORS))
        needs = {need for names, table in choices for name in names[i : i + 1] for need in table[name].needs}
        found: dict[str, Any] = {}
        for kind, load in (("vae", load_vae), ("flow", load_flow)):
            if kind in needs:
                path = getattr(args, f"{kind}_list")[i]
                with user_error(f"--{kind}_list entry {i + 1}"):
                    found[kind] = load(path, device)
                k = found[kind].kernel_dim
                if k != size:
                    raise UserError(f"--{kind}_list entry {i + 1} {path} is of {k}x{k} kernels, expected {size}x{size}")
        if "filters" in needs:
            with user_error(f"--filters_list entry {i + 1}"):
                found["filters"] = load_kernels(args.filters_list[i], size).to(device)
        sources.append(found)
    return sources
