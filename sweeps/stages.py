"""The stages of a pipeline. A stage is skipped if its arguments and the hashes of its files are those of its stamp."""

import functools
import hashlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from runs.directory import script_folder
from runs.errors import UserError
from runs.files import atomic_write, read_yaml, sha256, write_yaml
from runs.log import log_path
from sweeps.cluster import Resources, run_sweep
from sweeps.grid import make_trials, split_options
from sweeps.tables import reported
from sweeps.trials import SCRIPTS, find_script

MISSING = "missing"  # instead of a file's hash

Make = Callable[[], Sequence[Path]]  # writes the output files of a stage, and returns their paths


class Context(NamedTuple):
    """What all stages of a pipeline share: its folder, the resources of trials, and the command that continues it."""

    out: Path
    resources: Resources
    command: str


def file_hashes(files: Sequence[Path]) -> dict[str, str]:
    """The SHA-256 of each file by its path, or MISSING."""
    return {str(file): sha256(file) if file.is_file() else MISSING for file in files}


def read_stamp(file: Path) -> dict:
    """The arguments, inputs and outputs of a completed stage; none if the stamp does not exist or is damaged."""
    stamp = {}
    if file.exists():
        with reported("the stage runs again"):
            stamp = read_yaml(file)
    kinds = {key: type(value) for key, value in stamp.items()}
    complete = kinds == {"arguments": list, "inputs": dict, "outputs": dict}
    return stamp if complete else {"arguments": None, "inputs": {}, "outputs": {}}


def run_stage(
    out: Path, name: str, arguments: Sequence[str], inputs: Sequence[Path], make: Make, discard: Callable | None = None
) -> list[Path]:
    """Run a stage, unless its stamp has the same arguments, inputs and outputs, and return the output files.

    The stamp is `stages/<name>.yaml` in the pipeline's folder `out`. `arguments` are all that the output depends on,
    beside the files in `inputs`, whose order and content count, but not their paths. `discard` is called first for the
    path of each output file that is missing or was changed. Raises UserError if `make` does not write a file.
    """
    file = out / "stages" / f"{name}.yaml"
    arguments, found, stamp = list(arguments), file_hashes(inputs), read_stamp(file)
    outputs = [Path(path) for path in stamp["outputs"]]
    current = file_hashes(outputs)
    changed = [path for path in outputs if current[str(path)] != stamp["outputs"][str(path)]]
    same = stamp["arguments"] == arguments and list(stamp["inputs"].values()) == list(found.values())
    if same and not changed:
        print(f"{name}: done before", flush=True)
        return outputs
    print(f"{name}: {shlex.join(arguments)}", flush=True)
    for path in changed if discard else ():
        discard(path)
    made = file_hashes(make())
    for path, digest in made.items():
        if digest == MISSING:
            raise UserError(f"{name}: found no {path}, expected the stage to write it")
    write_yaml(file, {"arguments": arguments, "inputs": found, "outputs": made})
    return [Path(path) for path in made]


def discard_run(script: str, file: Path) -> None:
    """Move the run directory of a file to tmp/, so that a sweep trains the run again. Raises UserError."""
    base, run = script_folder(script), file.parent
    if run.parent != base / "runs" or not run.is_dir():
        return
    try:
        run.rename(base / "tmp" / run.name)
        (base / "index" / f"{run.name}.yaml").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{run}: cannot be moved to tmp/: {error.strerror}") from None
    print(f"{file}: missing or changed; its run is moved to tmp/ and trained again", file=sys.stderr)


def sweep_stage(
    context: Context, name: str, script: str, grid: str, shared: Sequence[str], inputs: Sequence[Path] = ()
) -> list[Path]:
    """A sweep as a stage: `params.yaml`, log and weights of each trial. A run with a changed file is trained again.

    `grid` and `shared` are the arguments before and after `--`; the trials read the files in `inputs`.
    """
    options = shlex.split(grid)

    def make() -> list[Path]:
        trials = make_trials(find_script(script), split_options(options)[1], shared)
        roots = run_sweep(f"{context.out.name}-{name}", trials, context.resources, context.command)
        files = ("params.yaml", log_path("", script), SCRIPTS[script].weights)
        return [root / file for root in roots for file in files]

    discard = functools.partial(discard_run, script)
    return run_stage(context.out, name, [script, *options, "--", *shared], inputs, make, discard)


def store_by_content(contents: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write files by name into `<folder>-<hash of their contents>`, and return their paths.

    The hash ignores YAML files, whose times and paths change from run to run. Trials whose arguments name such a folder
    are therefore identified by its content.
    """
    hashed = b"".join(content for name, content in contents.items() if not name.endswith(".yaml"))
    target = folder.with_name(f"{folder.name}-{hashlib.sha256(hashed).hexdigest()[:8]}")
    for name, content in contents.items():
        with atomic_write(target / name) as file:
            file.write(content)
    return [target / name for name in contents]
