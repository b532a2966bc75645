"""The page of runs: texts in hostile files, and pages of true runs with their kernels before and after training."""

import base64
import csv
import io
import shutil
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from models.build import build_network, init_network
from runs.device import seed_all
from sweeps import collect
from sweeps.page import kernels_before_after
from sweeps.tables import printable, read_runs
from tests.conftest import SMALL

HOSTILE = "</td><script>alert(1)</script>$\\frac{$-->\x1b[31m\n'\"&<b>"


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def elements_of(page):
    """The elements of a page that runs no script and loads nothing."""
    elements = Elements(page)
    assert not {tag for tag, _ in elements.tags} & {"script", "b", "link", "iframe", "object", "foreignobject"}
    for _, attributes in elements.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert "url(" not in page.replace("url(#", "")
    policy = next(a["content"] for tag, a in elements.tags if tag == "meta" and "content" in a)
    assert policy.startswith("default-src 'none'")
    return elements


@pytest.mark.parametrize("by", [[], ["--by", printable(HOSTILE)]])
def test_a_page_of_hostile_texts(write_run, sandbox, by):
    """In arguments, their names, columns of the log, names of script, run and layer."""
    layer = '"><script>'
    for number in (1, 2, 3):
        log = [{"t": 1, HOSTILE: 1, "test_acc": 2}]
        root = write_run("train-net.py", number, log, **{HOSTILE: HOSTILE * (number % 2), "name": HOSTILE})
        (root / "train-net.py-logs.csv").rename(root / "<script>-logs.csv")
        torch.save({layer: torch.ones(2, 1, 3, 3)}, root / "init_kernels.torch")
        torch.save({f"{layer}.weight": torch.ones(2, 1, 3, 3)}, root / "model.torch")
        root.rename(root.with_name(f"{number}<script>alert(1)<script>"))
    collect.main(["--html", "--out", str(sandbox / "out"), *by])
    page = (sandbox / "out" / "page.html").read_text()
    elements = elements_of(page)
    assert HOSTILE.split("\x1b")[0] in elements.text and "1<script>alert(1)<script>" in elements.text
    assert any(a.get("alt", "").startswith(layer) for _, a in elements.tags) and f"{layer}: 2 kernels" in elements.text
    assert "\x1b" not in page and "\x1b" not in (sandbox / "out" / "runs.csv").read_text()


def test_a_page_of_zeros(write_run, sandbox):
    """Columns of zeros have no panel, also where no other column exists."""
    write_run("train-net.py", 1, [{"t": 1, "test_acc": 0.0}])
    collect.main(["--html", "--out", str(sandbox / "out")])
    assert "train-net.py" in elements_of((sandbox / "out" / "page.html").read_text()).text


def test_the_page_of_true_runs(script, sandbox, capsys):
    argv = [*SMALL, "--lr", "0.01"]
    nets = [script("train-net.py").main([*argv, "--seed", str(seed)]).root for seed in (1, 2)]
    script("train-bnn.py").main([*argv, "--ens", "2"])
    (nets[0] / "model.torch").write_bytes(b"damaged")
    collect.main(["--html", "--by", "seed", "--out", str(sandbox / "out")])
    assert "model.torch" in capsys.readouterr().err
    elements = elements_of((sandbox / "out" / "page.html").read_text())
    tags = [tag for tag, _ in elements.tags]
    assert tags.count("svg") == 2 and tags.count("img") == 4  # two scripts; two convs of two networks
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(a["src"].split(",")[1]))) for t, a in elements.tags if t == "img"
    ]
    assert all(picture.format == "PNG" and picture.width > 200 for picture in pictures)
    for text in ("features.conv2: 12 kernels", "seed 2", "hid_dim 3 4"):
        assert text in elements.text
    with open(sandbox / "out" / "runs.csv") as file:
        for row in csv.DictReader(file):
            name = "test_acc" if row["script"] == "train-net.py" else "ens[2]_test_acc"
            assert f"{float(row[f'last_{name}']):.5g}" in elements.text


@pytest.mark.parametrize("name, net_cfg, layer", [("net", "vanilla", "weight"), ("bnn", "bayes", "mean.weight")])
def test_kernels_before_and_after(name, net_cfg, layer, script, sandbox):
    """The same kernels of the untrained network, made here from the seed, and of the model; at most 64 of a layer."""
    argv = [*SMALL, "--hid_dim", "4", "32", "--epochs", "1", "--lr", "0.01"]
    run = script(f"train-{name}.py").main(argv if name == "net" else [*argv, "--ens", "2"])
    (record,) = read_runs([run.root])
    model = torch.load(run.root / "model.torch", weights_only=True)
    seed_all(42)
    net = build_network("fconv", net_cfg, [4, 32])
    init_network(net, (), ())
    for conv, (before, after) in kernels_before_after(record).items():
        start, end = net.state_dict()[f"{conv}.{layer}"], model[f"{conv}.{layer}"]
        n = start.shape[0] * start.shape[1]
        index = [i * (n - 1) // 63 for i in range(64)] if n > 64 else list(range(n))
        torch.testing.assert_close(before[:, 0], start.flatten(0, 1)[index], rtol=0, atol=0)
        torch.testing.assert_close(after[:, 0], end.flatten(0, 1)[index], rtol=0, atol=0)
        assert not torch.equal(before, after)


def test_kernels_of_another_network(script, sandbox, capsys):
    first, other = (
        script("train-net.py").main([*SMALL, "--hid_dim", "3", n, "--epochs", "1"]).root for n in ("4", "5")
    )
    shutil.copy(other / "init_kernels.torch", first)
    collect.main([str(first), "--html"])
    assert "of different networks" in capsys.readouterr().err
    assert "<img" not in (first / "collected" / "page.html").read_text()
