"""The training loop of a run: epochs and batches that can be stopped and continued, and the files that they write."""

import math
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from runs.checkpoint import (
    CHECKPOINTS,
    find_checkpoints,
    fingerprint,
    load_file,
    named_leaves,
    restore,
    save_tensors,
    stored_inputs,
    training_state,
)
from runs.directory import environment, make_run_directory
from runs.errors import NOT_FINITE, Stopped, UserError, user_error
from runs.files import read_yaml, write_yaml
from runs.log import Log, Row
from runs.options import NOT_IDENTIFYING
from runs.signals import stop_signals

CHECK_EVERY = 100  # steps between two checks that the loss is finite, each of which waits for the device
STATE_EVERY = 1.0  # seconds between two updates of state.yaml
CHECKPOINT_EVERY = 300.0  # seconds, unless --checkpoint_freq is given: what a kill costs a run with few evaluations


def split_batches(order: Tensor, size: int, least: int = 1) -> list[Tensor]:
    """Split indices into batches of `size`; a last batch of fewer than `least` is joined to the batch before it."""
    batches = list(order.split(size)) if len(order) else []
    if len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class Run:
    """A run directory with its arguments, log and checkpoints, and the loop that fills it.

    A script registers the objects that it trains with `track`. It loops over `epochs` and `batches`, which write the
    checkpoints, stop after a signal, and skip the finished part of a continued run. A lock excludes other processes
    from the directory; the lock ends with the process.

    Parameters
    ----------
    script : path of the script in the project.
    args : all arguments of the script. A run is continued in the directory `continue_run`, or else newly created.
    device : the device that trains.
    inputs : by option, what the run has loaded. A continued run must have loaded the same, from whatever path.
    """

    def __init__(
        self,
        script: str,
        args: Namespace,
        device: torch.device,
        inputs: Mapping[str, Sequence[torch.nn.Module | Tensor | str]],
    ):
        self.script = script
        self.args = args
        self.device = device
        self.epoch = 0  # epochs done
        self.step = 0  # steps done, the current one included
        self.order: Tensor | None = None  # indices of the epoch's unused training items
        self.tracked: dict[str, Any] = {}
        self._received: list[int] = []  # numbers of stop signals
        self._unchecked: dict[str, Tensor] = {}  # per term of the loss: 0, or NaN after a non-finite value
        self._logged = False
        hashes = {option: fingerprint(content) for option, content in inputs.items() if content}
        if args.continue_run:
            self.root = Path(args.continue_run)
        else:
            self.root = make_run_directory(script, vars(args), device, hashes, args.tmp)
        self.log_files = Log(self.root, Path(script).name)
        # Another process that asks whether the run is locked (`is_locked`) holds the lock for a moment.
        self._lock = FileLock(self.root / ".lock", timeout=1)
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(f"--continue {self.root}: already running in another process") from None
        except OSError as error:
            raise UserError(f"--continue {self.root}: cannot be written: {error.strerror}") from None
        if args.continue_run:
            self._override(hashes)

    def _override(self, hashes: dict[str, str]) -> None:
        """Check the inputs of a continued run against those that it began with, and store the overridden options.

        Raises UserError for another content. A run of older code has no hashes: its paths cannot be overridden.
        """
        file = self.root / "params.yaml"
        params = read_yaml(file)
        began = stored_inputs(params)
        overrides = self.args.overrides
        for option in {*began, *(set(overrides) - set(NOT_IDENTIFYING))}:
            found, expected = hashes.get(option, "none: it is not read"), began.get(option, "none: it was not stored")
            if found != expected:
                value = getattr(self.args, option, "")
                raise UserError(
                    f"--{option} {value}: found content of SHA-256 {found}, expected the run's own: {expected}"
                )
        before, now = params["environment"], environment(self.script, self.device)
        changes = [f"{key} {now[key]} (before: {before[key]})" for key in before if before[key] != now.get(key)]
        if changes:
            note = f"--continue {self.root}: the end may differ from that of a whole run: {', '.join(changes)}"
            print(note, file=sys.stderr)
        if overrides:
            given = {option: getattr(self.args, option) for option in overrides}
            changes = [f"{option} {value} (before: {overrides[option]})" for option, value in given.items()]
            print(f"--continue {self.root}: overridden: {', '.join(changes)}", file=sys.stderr)
            write_yaml(file, params | given, new_folder=False)

    @property
    def rows(self) -> list[Row]:
        """The rows of the log."""
        return self.log_files.rows

    # --- the loop ---

    def track(self, **tracked: Any) -> None:
        """Register the modules, optimizers and tensors of a checkpoint; a continued run restores their states.

        Raises UserError where neither the last checkpoint nor the one before it is a checkpoint of this run.
        """
        self.tracked = tracked
        if not self.args.continue_run:
            return
        label = f"--continue {self.root}"
        files = find_checkpoints(self.root)
        rows = 0
        for file in files:
            try:
                with user_error("--continue"):
                    state = load_file(file)
            except UserError as error:
                if file == files[-1]:
                    raise
                print(f"{error}; continuing from the one before", file=sys.stderr)
                continue
            self.epoch, self.step, rows, self.order = restore(state, tracked, self.device, f"{label}: {file.name}")
            break
        with user_error("--continue"):
            self.log_files.restart(rows)

    def epochs(self, total: int) -> Iterator[int]:
        """Yield the remaining epochs of 1..total. Writes checkpoints (`checkpoint_freq`), and ends on a stop signal."""
        self._total = total
        # From here on a signal is heeded: who reads the printed line may stop the run at once.
        with stop_signals() as self._received:
            tqdm.write(f"run directory: {self.root}", file=sys.stdout)
            if self.epoch >= total:
                tqdm.write(f"finished: all {total} epochs are done", file=sys.stdout)
            sys.stdout.flush()
            self._write_state("running")
            if self.args.tensorboard:
                self.log_files.start_tensorboard()
            written = saved = time.monotonic()
            with tqdm(total=total, initial=self.epoch, desc="epochs", disable=None) as bar:
                while self.epoch < total:
                    yield self.epoch + 1
                    self.epoch += 1
                    self.order = None
                    bar.update()
                    freq, due = self.args.checkpoint_freq, self._logged or time.monotonic() > saved + CHECKPOINT_EVERY
                    if self.epoch == total or (self.epoch % freq == 0 if freq else due):
                        self.checkpoint()
                        self._logged, saved = False, time.monotonic()
                    if self.epoch < total:
                        self._stop_if_asked()
                    if time.monotonic() > written + STATE_EVERY:
                        self._write_state("running")
                        written = time.monotonic()
            self.log_files.close()
            self._write_state("finished")
        self._lock.release()

    def batches(self, n: int, size: int, least: int = 1) -> Iterator[Tensor]:
        """Indices of the batches of this epoch that are not done, of n items in a random order drawn at its start.

        `size` and `least` as of `split_batches`.
        """
        if self.order is None:
            self.order = torch.randperm(n, device=self.device)
        batches = split_batches(self.order, size, least)
        for index in tqdm(batches, desc="training", leave=False, delay=2, disable=None):
            self.step += 1
            self.order = self.order[len(index) :]
            yield index
            if self.step % CHECK_EVERY == 0:
                self._check_terms()
            self._stop_if_asked()

    def should_evaluate(self, t: int, last: int) -> bool:
        """Whether to evaluate at t, an epoch or step of 1..last: at the first, the last, and every `eval_freq`.

        With an `eval_freq` of 0 only at the last.
        """
        freq = self.args.eval_freq
        return t == last or (freq > 0 and (t == 1 or t % freq == 0))

    def require_finite(self, terms: Mapping[str, Tensor]) -> None:
        """End the run with a `UserError` if a term of the loss is not finite; `terms` maps names to scalars.

        The check is delayed, because reading a value makes the step wait for the device. The values are checked every
        `CHECK_EVERY` steps and before each log row and checkpoint.
        """
        for name, term in terms.items():
            self._unchecked[name] = self._unchecked.get(name, 0) + 0 * term.detach()  # NaN, once not finite

    def _check_terms(self) -> None:
        bad = [name for name, value in self._unchecked.items() if not value.isfinite()]
        self._unchecked = {}
        if bad:
            self._end_not_finite(bad)

    def _end_not_finite(self, names: list[str]) -> NoReturn:
        last = self.root / CHECKPOINTS[0]
        where = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint has been written yet"
        epoch = self.epoch + (self.order is not None)  # the current epoch, or between epochs the last one
        raise UserError(f"step {self.step} (epoch {epoch}){NOT_FINITE} {', '.join(names)}; expected numbers; {where}")

    def _stop_if_asked(self) -> None:
        if not self._received:
            return
        self.checkpoint()
        self._write_state("stopped")
        number = self._received[0]
        command = f"continue with: python {self.script} --continue {self.root}"
        raise Stopped(number, f"stopped by {signal.Signals(number).name} after step {self.step}; {command}")

    # --- files ---

    def log(self, t: int, **values: float | None) -> None:
        """Add a row to the log: column `t` and the values. A value None, a score of no images, has no column.

        Raises UserError where a value, or a term of the loss since the last row, is not finite.
        """
        self._check_terms()
        values = {name: value for name, value in values.items() if value is not None}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            self._end_not_finite(bad)
        self.log_files.append({"t": t, **values})
        self._logged = True

    def _require_directory(self) -> None:
        """Raise UserError, which says so, if the run directory was moved or deleted.

        No write makes it anew: the new one would hold no more than a part of the run.
        """
        if not (self.root / "params.yaml").exists():
            raise UserError(f"{self.root}: the run directory was moved or deleted, expected it until the run ends")

    def _write_state(self, state: str) -> None:
        """Write the epoch and the state (running, stopped or finished) to state.yaml, for other processes."""
        self._require_directory()
        content = {"state": state, "epoch": self.epoch, "epochs": self._total}
        write_yaml(self.root / "state.yaml", content, new_folder=False)

    def save_weights(self) -> None:
        """Write the state dict of each tracked module and optimizer, atomically, as `<name>.torch`."""
        for name, thing in self.tracked.items():
            state = thing.state_dict() if hasattr(thing, "state_dict") else None
            if state:
                save_tensors(self.root / f"{name}.torch", state)

    def checkpoint(self) -> None:
        """Write the complete state of the training to a checkpoint; the previous checkpoint is kept as a backup.

        The learning rate is a function of the epoch and is not stored. Raises UserError where the loss or a parameter
        is not finite, or the write fails; the previous checkpoint is then unchanged.
        """
        self._require_directory()
        self._check_terms()
        state = training_state(self.tracked)
        bad = [n for n, v in named_leaves(state["states"]) if isinstance(v, Tensor) and not v.isfinite().all()]
        if bad:
            self._end_not_finite(bad[:1])
        order = None if self.order is None else self.order.clone()
        state |= {"epoch": self.epoch, "step": self.step, "rows": len(self.rows), "order": order}
        last, before = (self.root / name for name in CHECKPOINTS)
        self.log_files.sync()
        save_tensors(last, state, backup=before)


class Stopwatch:
    """A stopwatch with laps, in seconds."""

    def __init__(self):
        self.start = time.perf_counter()

    def lap(self) -> float:
        """The seconds since the last lap, or since the start."""
        now = time.perf_counter()
        elapsed, self.start = now - self.start, now
        return elapsed
