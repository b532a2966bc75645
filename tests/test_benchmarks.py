"""The textbook baseline computes what it is compared with, and the table is made."""

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import textbook
from models.bayes import set_mode


@pytest.mark.parametrize("k", [7, 5])
def test_the_textbook_kl_is_ours(k):
    net = benchmarks.bnn(quick=True)
    layer = net.features.conv1 if k == 7 else net.features.conv2
    vae = textbook.plain(benchmarks.vae(k, quick=True))
    torch.manual_seed(0)
    found = layer.kl()
    torch.manual_seed(0)
    expected = textbook.layer_kl(layer, vae)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_the_textbook_network_is_ours():
    net = benchmarks.bnn(quick=True)
    x = torch.rand(3, 1, 28, 28)
    set_mode(net, "det")
    torch.testing.assert_close(textbook.forward(textbook.plain(net), x, sample=False), net(x))


def test_the_quick_table(capsys):
    table = benchmarks.main(["--quick", "--rows", "KL of", "source"])
    assert len(table) == 6 and all(value >= 0 for row in table for value in row[1:])
    assert "times faster" in capsys.readouterr().out
