"""Files that are written completely or not at all."""

import os
import stat

import pytest

from runs.errors import UserError
from runs.files import atomic_write, read_yaml, write_yaml


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_atomic_write_keeps_the_permissions_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "new" / "file") as file:
            file.write(b"content")
        write_yaml(tmp_path / "new" / "x.yaml", {"b": 1, "a": [1, 2]})
        (tmp_path / "plain").write_text("")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new/file", "new/x.yaml", "plain")]
    assert modes == [0o666 & ~umask] * 3
    assert (tmp_path / "new" / "file").read_bytes() == b"content"
    assert list(read_yaml(tmp_path / "new" / "x.yaml").items()) == [("b", 1), ("a", [1, 2])]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_in_the_body_leaves_the_files_as_they_were(tmp_path, error):
    path, backup = tmp_path / "file", tmp_path / "backup"
    path.write_bytes(b"old")
    backup.write_bytes(b"older")
    with pytest.raises(UserError if error is OSError else error), atomic_write(path, backup) as file:
        file.write(b"half")
        file.flush()
        raise error("in the body")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"old", "backup": b"older"}


def test_the_file_that_is_replaced_becomes_the_backup(tmp_path):
    path, backup = tmp_path / "file", tmp_path / "backup"
    for content, expected in ((b"1", {"file": b"1"}), (b"2", {"file": b"2", "backup": b"1"}), (b"3", None)):
        with atomic_write(path, backup) as file:
            file.write(content)
        found = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        assert found == (expected or {"file": b"3", "backup": b"2"})


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/x: cannot be written"), atomic_write(tmp_path / "file" / "x"):
        pass
