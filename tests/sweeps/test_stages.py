"""A stage of the pipeline: when it runs, what it refuses, and folders that are named by their content."""

import pytest

from runs.errors import UserError
from sweeps.stages import run_stage, store_by_content


def test_a_stage_runs_if_something_is_not_as_in_its_stamp(tmp_path, capsys):
    source, target, discarded = tmp_path / "in", tmp_path / "out", []
    source.write_text("1")

    def make():
        target.write_text(source.read_text())
        return [target]

    def runs(*arguments):
        assert run_stage(tmp_path, "copy", arguments, [source], make, discarded.append) == [target]
        return "done before" not in capsys.readouterr().out

    assert runs("a") and not runs("a")
    assert runs("b") and not runs("b")
    source.write_text("2")
    assert runs("b") and target.read_text() == "2" and not runs("b") and not discarded
    target.write_text("3")
    assert runs("b") and target.read_text() == "2" and discarded == [target]
    target.unlink()
    assert runs("b") and target.read_text() == "2" and discarded == [target, target]
    for text in ("", "[", "arguments: [b]\n", "arguments: 1\ninputs: {}\noutputs: {}\n"):
        (tmp_path / "stages" / "copy.yaml").write_text(text)
        assert runs("b") and not runs("b"), text


def test_a_stage_without_its_output(tmp_path):
    with pytest.raises(UserError, match=r"copy: found no .*/out, expected the stage to write it"):
        run_stage(tmp_path, "copy", [], [], lambda: [tmp_path / "out"])
    assert not (tmp_path / "stages").exists()


def test_a_folder_is_named_by_its_content(tmp_path):
    """YAML files, which have times and paths, do not count."""
    first, *_ = store_by_content({"x.npy": b"1", "params.yaml": b"1"}, tmp_path / "vae")
    same, params = store_by_content({"x.npy": b"1", "params.yaml": b"2"}, tmp_path / "vae")
    (other,) = store_by_content({"x.npy": b"2"}, tmp_path / "vae")
    assert first == same != other and params.read_bytes() == b"2" and first.read_bytes() == b"1"
    assert {path.name[:4] for path in tmp_path.iterdir()} == {"vae-"} and len(list(tmp_path.iterdir())) == 2
