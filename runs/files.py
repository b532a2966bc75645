"""YAML files, read without executing code, and atomic writes. This module does not import torch."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, ClassVar

import yaml

from runs.errors import UserError

MAX_YAML = 1_000_000  # bytes


class TextLoader(yaml.SafeLoader):
    """Reads each scalar as the text that was written, but null as None: `no` is the name of a prior, not False."""

    yaml_implicit_resolvers: ClassVar = {
        first: [row for row in rows if row[0] == "tag:yaml.org,2002:null"]
        for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_yaml(path: str | Path, as_text: bool = False, limit: int = MAX_YAML) -> dict[str, Any]:
    """Read a mapping from a YAML file. Its values are scalars, lists of scalars, or mappings to scalars.

    With `as_text` scalars are not converted (`TextLoader`), as words of a command line. Raises UserError, which starts
    with the path, where the file cannot be read, is longer than `limit` bytes, or holds anything else.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(limit + 1)
        if len(text) > limit:
            raise ValueError(f"more than {limit} bytes")
        content = yaml.load(text.decode(), TextLoader if as_text else yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: undecodable text, or an impossible date
        raise UserError(f"{path}: not a plain YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: found a {type(content).__name__}, expected a mapping of names to values")
    for key, value in content.items():
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        # Aliases turn a small file into a huge tree, which must be neither printed nor parsed.
        if any(isinstance(item, dict | list | tuple | set) for item in (key, *inner)):
            raise UserError(f"{path}: found nested values, expected a number, a text or a list of these for each name")
    return content


def write_yaml(path: str | Path, content: dict[str, Any], new_folder: bool = True) -> None:
    """Write a mapping as YAML, with its order of keys, by `atomic_write`. Raises UserError if that fails."""
    with atomic_write(path, new_folder=new_folder) as file:
        file.write(yaml.safe_dump(content, sort_keys=False, width=10**6).encode())


@contextmanager
def atomic_write(path: str | Path, backup: Path | None = None, new_folder: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary binary file, which replaces `path` if the body succeeds; otherwise `path` is unchanged.

    The old file is first renamed to `backup`, if given. Missing folders are created where `new_folder` is true. Raises
    UserError if writing fails, e.g. for lack of permission or disk space.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if new_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if backup and path.exists():
            os.replace(path, backup)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # the folder may be missing
            temporary.unlink()
        if isinstance(error, OSError):
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
        raise


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal. Raises OSError."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
