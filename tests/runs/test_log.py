"""The log of a run: rows are appended, and a continued run cuts what its checkpoint does not count."""

import builtins
import signal

import pytest

import runs.log
from runs.errors import UserError
from runs.log import HEADER_EVERY, Log, read_rows
from tests.conftest import assert_same_end, read_cells


def test_rows_are_appended_and_read(tmp_path, monkeypatch):
    """The files are opened to append only, so the bytes written are those of the files: each row is written once."""
    modes = []

    def noting_open(path, mode="r"):
        modes.append(mode)
        return builtins.open(path, mode)

    rows = [{"t": t, "loss": 1 / t, "lr": 1e-300} for t in range(1, 2 * HEADER_EVERY + 2)]
    log = Log(tmp_path, "train-net.py")
    with monkeypatch.context() as patch:
        patch.setattr(runs.log, "open", noting_open, raising=False)
        for row in rows:
            log.append(row)
    assert modes == ["a"] * 2 * len(rows) and set(tmp_path.iterdir()) == {log.csv, log.text}
    assert read_rows(log.csv) == log.rows == rows
    lines = log.text.read_text().splitlines()
    headers = [i for i, line in enumerate(lines) if "loss" in line]
    assert headers == [0, HEADER_EVERY + 2, 2 * (HEADER_EVERY + 2)] and len(lines) == len(rows) + 2 * len(headers)

    other = Log(tmp_path, "train-net.py")
    contents = [path.read_bytes() for path in (log.csv, log.text)]
    other.restart(len(rows))
    assert contents == [path.read_bytes() for path in (log.csv, log.text)] and other.rows == rows


def test_a_torn_last_line_is_no_row(tmp_path):
    path = tmp_path / "x.csv"
    whole = "t,loss\n1,0.5\n2,0.25\n"
    for end in range(len(whole) + 1):
        path.write_text(whole[:end])
        rows = read_rows(path)
        assert rows == [{"t": 1, "loss": 0.5}, {"t": 2, "loss": 0.25}][: max(0, whole[:end].count("\n") - 1)]
    for text in ("t,loss\n1,x\n", "t,loss\n1\n", "loss\n1\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="expected the table of a log") as error:
            read_rows(path)
        assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("name", ["net", "vae"])
@pytest.mark.parametrize("torn", ["", "6,0.1,0.", "6"])
def test_rows_after_the_checkpoint_and_a_torn_line_are_cut(name, torn, script, small_run, stop_at, capsys):
    """A run that was killed while it wrote a row ends as one that never was."""
    file, argv = small_run(name)
    whole = script(file).main(argv).root
    stop_at(10, signal.SIGTERM)
    with pytest.raises(SystemExit):
        script(file).main(argv)
    root = next(path for path in whole.parent.iterdir() if path != whole)
    rows = len(read_cells(root))
    for suffix in ("csv", "out"):
        end = (whole / f"{file}-logs.{suffix}").read_text().splitlines(keepends=True)[-1]
        with open(root / f"{file}-logs.{suffix}", "a") as log:
            log.write(end + torn)
    script(file).main(["--continue", str(root)])
    assert 0 < rows < len(read_cells(root))
    assert_same_end(whole, root)
    found, expected = ((folder / f"{file}-logs.out").read_text().splitlines() for folder in (root, whole))
    assert len(found) == len(expected) and [line.split()[0] for line in found] == [line.split()[0] for line in expected]
