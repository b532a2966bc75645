"""The training loop of a run: epochs and batches that can be stopped and continued, and the files that they write."""

import math
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from runs.checkpoint import load_file, named_leaves, restore, save_tensors, training_state
from runs.directory import make_run_directory
from runs.errors import Stopped, UserError, user_error
from runs.files import write_yaml
from runs.log import Log, Row
from runs.signals import stop_signals

CHECK_EVERY = 100  # steps between two checks that the loss is finite, each of which waits for the device
CHECKPOINTS = ("checkpoint.torch", "checkpoint-before.torch")  # the last, and the one before it
STATE_EVERY = 1.0  # seconds between two updates of state.yaml


class Run:
    """A run directory with its arguments, log and checkpoints, and the loop that fills it.

    A script names with `track` what its training changes. It loops over `epochs` and `batches`, which write the
    checkpoints, stop after a signal, and start where the checkpoint of a continued run ends. A lock on the directory,
    which ends with the process, keeps a second process out.

    Parameters
    ----------
    script : name of the script.
    args : all its arguments. `continue_run` names the directory of a run to continue; else a new one is made.
    device : of the training.
    """

    def __init__(self, script: str, args: Namespace, device: torch.device):
        self.script = script
        self.args = args
        self.device = device
        self.epoch = 0  # epochs done
        self.step = 0  # steps done, the current one included
        self.order: Tensor | None = None  # of the training set in this epoch, from the next batch on
        self.tracked: dict[str, Any] = {}
        self._received: list[int] = []  # stop signals
        self._unchecked: dict[str, Tensor] = {}  # per term of the loss 0, or NaN where it was not finite
        self._logged = False
        if args.continue_run:
            self.root = Path(args.continue_run)
        else:
            self.root = make_run_directory(script, vars(args), device, args.tmp)
        self.log_files = Log(self.root, script)
        self._lock = FileLock(self.root / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(f"--continue {self.root}: already running in another process") from None
        except OSError as error:
            raise UserError(f"--continue {self.root}: cannot be written: {error.strerror}") from None

    @property
    def rows(self) -> list[Row]:
        """The rows of the log."""
        return self.log_files.rows

    # --- the loop ---

    def track(self, **tracked: Any) -> None:
        """Name the modules, optimizers and tensors of a checkpoint; in a continued run, restore them from it.

        Raises UserError where neither the last checkpoint nor the one before it is a checkpoint of this run.
        """
        self.tracked = tracked
        if not self.args.continue_run:
            return
        label = f"--continue {self.root}"
        files = [file for name in CHECKPOINTS if (file := self.root / name).exists()]
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
        """The epochs 1..total that are not done. Writes a checkpoint after each epoch that `checkpoint_freq` names."""
        tqdm.write(f"run directory: {self.root}", file=sys.stdout)
        sys.stdout.flush()
        self._total = total
        self._write_state("running")
        if self.args.tensorboard:
            self.log_files.start_tensorboard()
        written = time.monotonic()
        bar = tqdm(total=total, initial=self.epoch, desc="epochs", disable=None)
        with stop_signals() as self._received, bar:
            while self.epoch < total:
                yield self.epoch + 1
                self.epoch += 1
                self.order = None
                bar.update()
                freq = self.args.checkpoint_freq
                if self.epoch == total or (self.epoch % freq == 0 if freq else self._logged):
                    self.checkpoint()
                    self._logged = False
                if self.epoch < total:
                    self._stop_if_asked()
                if time.monotonic() > written + STATE_EVERY:
                    self._write_state("running")
                    written = time.monotonic()
        self.log_files.close()
        self._write_state("finished")
        self._lock.release()

    def batches(self, n: int, size: int) -> Iterator[Tensor]:
        """Indices of the batches of this epoch that are not done, of n items in a random order drawn at its start."""
        if self.order is None:
            self.order = torch.randperm(n, device=self.device)
        batches = self.order.split(size) if len(self.order) else ()
        for index in tqdm(batches, desc="training", leave=False, delay=2, disable=None):
            self.step += 1
            self.order = self.order[len(index) :]
            yield index
            if self.step % CHECK_EVERY == 0:
                self._check_terms()
            self._stop_if_asked()

    def should_evaluate(self, t: int, last: int) -> bool:
        """Whether to evaluate at t, an epoch or step of 1..last: at the first, the last, and every `eval_freq`."""
        return t == 1 or t % self.args.eval_freq == 0 or t == last

    def require_finite(self, terms: Mapping[str, Tensor]) -> None:
        """Let the run end with a `UserError` if one of these scalars, terms of the loss by name, is not finite.

        The values are not read here, because a step would wait for the device. They are checked every `CHECK_EVERY`
        steps and before anything is written.
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
        raise UserError(
            f"step {self.step} (epoch {self.epoch + 1}): not finite: {', '.join(names)}; expected numbers; {where}"
        )

    def _stop_if_asked(self) -> None:
        if not self._received:
            return
        self.checkpoint()
        self._write_state("stopped")
        number = self._received[0]
        command = f"continue with: python {self.script} --continue {self.root}"
        raise Stopped(number, f"stopped by {signal.Signals(number).name} after step {self.step}; {command}")

    # --- files ---

    def log(self, t: int, **values: float) -> None:
        """Add a row to the log: column `t` and the values.

        Raises UserError where a value, or a term of the loss since the last row, is not finite.
        """
        self._check_terms()
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            self._end_not_finite(bad)
        self.log_files.append({"t": t, **values})
        self._logged = True

    def _write_state(self, state: str) -> None:
        """Write what other processes can see of the run: running, stopped or finished, and its epoch."""
        write_yaml(self.root / "state.yaml", {"state": state, "epoch": self.epoch, "epochs": self._total})

    def save_weights(self) -> None:
        """Write the state dict of each tracked module and optimizer, atomically, as `<name>.torch`."""
        for name, thing in self.tracked.items():
            state = thing.state_dict() if hasattr(thing, "state_dict") else None
            if state:
                save_tensors(self.root / f"{name}.torch", state)

    def checkpoint(self) -> None:
        """Write everything that the rest of the run depends on; the previous checkpoint is kept as a backup.

        The learning rate is a function of the epoch, so it needs no state. Raises UserError where the loss or a
        parameter is not finite, and where the disk is full; the previous checkpoint is unchanged then.
        """
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
    """Seconds since it was made or last read."""

    def __init__(self):
        self.start = time.perf_counter()

    def lap(self) -> float:
        """The seconds since the last lap, or since the start."""
        now = time.perf_counter()
        elapsed, self.start = now - self.start, now
        return elapsed
