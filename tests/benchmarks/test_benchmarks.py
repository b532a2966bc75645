"""The textbook's code computes what this code is compared with, and the table is made on every processor."""

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import measure, textbook
from benchmarks.comparisons import COMPARISONS, CPU, random_bnn, random_vae
from models.bayes import set_mode
from runs.device import has_bfloat16


@pytest.mark.parametrize("k", [7, 5])
def test_the_textbook_kl_is_ours(k):
    net = random_bnn(quick=True)
    layer = net.features.conv1 if k == 7 else net.features.conv2
    vae = textbook.textbook_copy(random_vae(k, quick=True))
    torch.manual_seed(0)
    found = layer.kl()
    torch.manual_seed(0)
    expected = textbook.layer_kl(layer, vae)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_the_textbook_network_is_ours():
    net = random_bnn(quick=True)
    x = torch.rand(3, 1, 28, 28)
    set_mode(net, "det")
    torch.testing.assert_close(textbook.forward(textbook.textbook_copy(net), x, sample=False), net(x))


@pytest.fixture
def no_memory(monkeypatch):
    """Memory is not measured but 0, because a measurement starts a process, which imports torch."""
    monkeypatch.setattr(measure, "in_new_process", lambda *_: (0.0, 0.0))


def assert_measured(row: list) -> None:
    """The row has five numbers; the memory is NaN on a system that does not tell it."""
    assert len(row) == 6 and not any(value < 0 for value in row[1:]), row


def test_the_quick_table(no_memory, capsys):
    table = benchmarks.main(["--quick", "--rows", "KL of", "source"])
    assert len(table) == 6
    for row in table:
        if has_bfloat16(CPU) or "bf16" not in row[0]:
            assert_measured(row)
    assert "times faster" in capsys.readouterr().out


def test_the_memory_of_a_row():
    """Time in this process and memory in processes of their own are measured for the row that `--rows` picks."""
    (row,) = benchmarks.main(["--quick", "--rows", "4 drawn"])
    assert row[0] == "KL of 8 5x5 kernels, 4 drawn"
    assert_measured(row)


def test_the_quick_table_without_bfloat16(no_memory, monkeypatch, capsys):
    """On a CPU that does not compute in bfloat16, the rows of bfloat16 say so and all others are measured."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    table = benchmarks.main(["--quick"])
    assert len(table) == len(COMPARISONS)
    refused = [row for row in table if "bf16" in row[0]]
    assert len(refused) == 2 and all(row[1:] == [benchmarks.NO_BFLOAT16] for row in refused)
    for row in table:
        if row not in refused:
            assert_measured(row)
    out = capsys.readouterr().out
    assert out.count("| not measured: this CPU does not compute in bfloat16 |") == 2 and "GFLOP/s" in out
