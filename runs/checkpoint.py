"""Checkpoints and state dicts: loaded as data, without executing code, with names, shapes and values checked."""

import hashlib
import io
import os
import random
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runs.errors import UserError, user_error
from runs.files import atomic_write

CHECKPOINTS = ("checkpoint.torch", "checkpoint-before.torch")  # of a run: the latest one and its predecessor


def save_tensors(path: Path, state: dict[str, Any], backup: Path | None = None) -> None:
    """Write `state` with `torch.save`, atomically (`runs.files.atomic_write`), into a folder that exists.

    Raises UserError if the write fails.
    """
    buffer = io.BytesIO()  # in memory first: only a plain write can fail while the file is open
    torch.save(state, buffer)
    with atomic_write(path, backup, new_folder=False) as file:
        file.write(buffer.getbuffer())


def find_checkpoints(folder: str | Path | None) -> list[Path]:
    """The checkpoints in a run's folder, the latest first. A run that is continued without one starts as a new one."""
    return [path for name in CHECKPOINTS if (path := Path(folder, name)).exists()] if folder else []


def check_archive(path: str | Path) -> None:
    """Raise ValueError for a zip archive that is larger unpacked than packed. torch does not compress its archives."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if compressed or sum(member.file_size for member in members) > os.path.getsize(path):
            raise ValueError("it is compressed")


def named_leaves(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values in nested dicts, lists and tuples, each with its path of keys, e.g. "states.model.weight"."""
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else None
    if items is None:
        yield name, state
    else:
        for key, value in items:
            yield from named_leaves(value, f"{name}.{key}" if name else str(key))


def load_file(path: str | Path) -> dict[str, Any]:
    """Load a dict of dense tensors onto the CPU, without executing code. Raises UserError, which names the path."""
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in named_leaves(state):
            # A tensor may have more elements than stored numbers; a later save would write every element.
            if isinstance(value, Tensor) and (
                value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes()
            ):
                raise UserError(f"{path}: {name} is not a dense tensor")
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected a state dict") from None
    except Exception:  # torch's reader raises many kinds of errors for a damaged file
        raise UserError(f"{path} cannot be loaded as data, expected a state dict saved by torch") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, expected a state dict")
    return state


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Load a network's state dict of finite tensors. Raises UserError, which starts with the path."""
    state = load_file(path)
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} holds {name!r}: {type(value).__name__}, expected names and dense tensors")
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: {name} has values that are not finite")
    return state


def fingerprint(content: Sequence[nn.Module | Tensor | str]) -> str:
    """The SHA-256, in hexadecimal, of the values of tensors, of the state dicts of modules, and of texts."""
    digest = hashlib.sha256()
    for item in content:
        for value in item.state_dict().values() if isinstance(item, nn.Module) else [item]:
            array = value.detach().cpu().contiguous().numpy() if isinstance(value, Tensor) else value.encode()
            digest.update(array)
    return digest.hexdigest()


def stored_inputs(params: Mapping[str, Any]) -> Mapping[str, str]:
    """The fingerprints of what a run has loaded, by option, from its params.yaml; empty for a run of older code."""
    return params["inputs"] if isinstance(params.get("inputs"), dict) else {}


def check_state(module: nn.Module, state: dict[str, Tensor], label: str) -> None:
    """Check that `state` has the names and shapes of `module`. Raises UserError, which starts with `label`."""
    own = module.state_dict()
    odd = sorted(own.keys() ^ state.keys())
    if odd:
        raise UserError(f"{label}: {odd[0]} is {'missing' if odd[0] in own else 'not expected'} in the state dict")
    for name, value in state.items():
        if value.shape != own[name].shape or value.is_floating_point() != own[name].is_floating_point():
            found, expected = (f"{t.dtype} of shape {tuple(t.shape)}" for t in (value, own[name]))
            raise UserError(f"{label}: {name} is {found}, expected {expected}")


def load_checked(module: nn.Module, state: dict[str, Tensor], label: str) -> None:
    """Load `state` into `module` after `check_state`. Raises UserError, which starts with `label`."""
    check_state(module, state, label)
    module.load_state_dict(state)


def load_pretrained(net: nn.Module, path: str, classifier: bool = True) -> None:
    """Load a state dict file into a network (option `pretrained`). Deterministic weights become posterior means.

    Log variances and trained reverse models that the file lacks stay as they are, and so does the classifier unless it
    is to be loaded. Raises UserError.
    """
    with user_error("--pretrained"):
        state = load_state(path)
    skipped = () if classifier else ("classifier.",)
    own, renamed = net.state_dict(), {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{layer}.mean.{kind}" if name not in own and f"{layer}.mean.{kind}" in own else name] = value
    renamed = {name: value for name, value in renamed.items() if not name.startswith(skipped)}
    # A deterministic network has neither deviations nor trained reverse models.
    optional = (".var.weight", ".w_alpha")
    kept = {n: v for n, v in own.items() if n.endswith(optional) or ".prior." in n or n.startswith(skipped)}
    load_checked(net, kept | renamed, f"--pretrained {path}")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], label: str) -> None:
    """Load `state` into `optimizer` and check its moments. Raises UserError, which starts with `label`."""
    try:
        optimizer.load_state_dict(state)
        for parameter, moments in optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                if moments[name].shape != parameter.shape or not torch.isfinite(moments[name]).all():
                    raise ValueError(
                        f"{name} of {tuple(moments[name].shape)} for {tuple(parameter.shape)} or not finite"
                    )
    except Exception as error:
        raise UserError(f"{label}: not an optimizer state of this network ({error})") from None


def load_run(folder: str, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load model and optimizer of a run directory (option `resume`). Raises UserError where the network is another."""
    with user_error("--resume"):
        load_checked(net, load_state(Path(folder, "model.torch")), f"{folder}/model.torch")
        load_optimizer(optimizer, load_file(Path(folder, "opt.torch")), f"{folder}/opt.torch")


# --- checkpoints --------------------------------------------------------------------------------------------------


def training_state(tracked: dict[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint: the state of the tracked modules, optimizers and tensors, and every random state."""
    states = {name: thing if isinstance(thing, Tensor) else thing.state_dict() for name, thing in tracked.items()}
    legacy = np.random.get_state()  # of the global generator: name, key, position, and a cached normal draw
    return {
        "states": states,
        "random": {
            "python": random.getstate(),
            "numpy": (legacy[0], legacy[1].tolist(), *legacy[2:]),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        },
    }


def restore(
    state: dict[str, Any], tracked: dict[str, Any], device: torch.device, label: str
) -> tuple[int, int, int, Tensor | None]:
    """Set the tracked objects and every random state to those of a checkpoint.

    Returns the numbers of epochs, steps and log rows, and the indices of the epoch's unused training images, in order.
    Raises UserError, which starts with `label`, where `state` is not a checkpoint of these objects.
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
                load_checked(thing, value, name)
            elif isinstance(thing, torch.optim.Optimizer):
                load_optimizer(thing, value, name)
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
            torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])
        if device.type == "mps" and states["mps"] is not None:
            torch.mps.set_rng_state(states["mps"])
    except Exception as error:  # missing entries and wrong types raise many kinds of errors
        raise UserError(f"{label}: not a checkpoint of this run ({error})") from None
    return epoch, step, rows, order
