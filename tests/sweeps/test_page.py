"""The page of runs: texts in hostile files, and pages of true runs with their kernels before and after training."""

import base64
import csv
import io
import shutil
import subprocess

import pytest
import torch
from PIL import Image

from models.build import build_network, init_network
from runs.device import seed_all
from sweeps import collect
from sweeps.page import SORT, compact_table, kernels_before_after, plot_groups
from sweeps.tables import group_runs, printable, read_runs
from tests.conftest import SMALL
from tests.pages import assert_no_error_in_browser, elements_of

HOSTILE = "</td><script>alert(1)</script>$\\frac{$-->\x1b[31m\n'\"&<b>"


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
    """Columns of zeros have no panel, also where no other column exists; a log of one row has no curve."""
    for n_rows in (1, 2):
        write_run("train-net.py", n_rows, [{"t": t, "test_acc": 0.0} for t in range(n_rows)])
        collect.main(["--html", "--out", str(sandbox / "out")])
        elements = elements_of((sandbox / "out" / "page.html").read_text())
        assert "train-net.py" in elements.text
        assert ("Each log has one row" in elements.text) == (n_rows == 1)
        assert [tag for tag, _ in elements.tags].count("svg") == n_rows - 1


def test_groups_with_different_columns(write_run, sandbox):
    """A column that one group's logs lack has curves of the others."""
    for number, more in enumerate(({"features.conv1/dev_to_prior": 0.5}, {}), 1):
        write_run("train-bnn.py", number, [{"t": t, "test_nll": 1.0, **more} for t in (1, 2)], prior=f"p{number}")
    collect.main(["--html", "--by", "prior", "--out", str(sandbox / "out")])
    assert "p2" in elements_of((sandbox / "out" / "page.html").read_text()).text


def test_the_page_of_true_runs(script, sandbox, capsys):
    argv = [*SMALL, "--lr", "0.01"]
    nets = [script("train-net.py").main([*argv, "--seed", str(seed)]).root for seed in (1, 2)]
    script("train-bnn.py").main([*argv, "--ens", "2"])
    (nets[0] / "model.torch").write_bytes(b"damaged")
    collect.main(["--html", "--by", "seed", "--out", str(sandbox / "out")])
    assert "model.torch" in capsys.readouterr().err
    elements = elements_of((sandbox / "out" / "page.html").read_text())
    tags = [tag for tag, _ in elements.tags]
    # The learning curves of two scripts and the groups of one; two convs of two networks.
    assert tags.count("svg") == 3 and tags.count("img") == 4
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


@pytest.fixture
def groups(write_run, sandbox):
    """Groups of runs with three numbers of images and two priors, two runs each; one run has another metric too."""
    for i, (n, prior) in enumerate((n, prior) for n in (100, 50, 200) for prior in ("sn", "vae") for _ in range(2)):
        more = {"test_nll": 1.0} if n > 50 else {}
        log = [{"t": 1, "test_acc": 0.0, **more}, {"t": 2, "test_acc": n / 1000 + i / 100, **more}]
        write_run("train-net.py", i + 1, log, num_examples=n, prior_list=[prior, prior])
    return group_runs(read_runs([sandbox / "logs"]), ["num_examples", "prior_list"])


def test_the_compact_table(groups):
    table = compact_table(groups, ["num_examples", "prior_list"])
    assert list(table) == ["num_examples", "prior_list", "accuracy", "NLL"] and len(table) == 6
    first = table.iloc[0]
    assert (first["num_examples"], first["accuracy"], first["NLL"]) == (100, "0.105 ± 0.0071 (2)", "1 ± 0 (2)")
    assert table[table["num_examples"] == 50]["NLL"].isna().all()


def test_the_figure_of_groups(groups):
    """A line per prior over the number of images in order, with the means and standard deviations of the groups."""
    by = ["prior_list", "num_examples"]
    axis, other = plot_groups({(key[0], key[2], key[1]): own for key, own in groups.items()}, by).axes
    assert axis.get_xlabel() == "num_examples" and (axis.get_ylabel(), other.get_ylabel()) == ("accuracy", "NLL")
    lines = {bar.get_label(): bar for bar in axis.containers}
    assert set(lines) == {"prior_list sn sn", "prior_list vae vae"}
    line, _, (bars,) = lines["prior_list sn sn"]
    assert list(line.get_xdata()) == [50, 100, 200]
    assert list(line.get_ydata()) == pytest.approx([0.05 + 0.045, 0.1 + 0.005, 0.2 + 0.085])
    low, high = bars.get_segments()[0]
    assert high[1] - low[1] == pytest.approx(2 * 0.01 / 2**0.5)
    assert plot_groups(groups, []) is None


def test_a_figure_of_draws(write_run, sandbox):
    """Its accuracy, NLL and ECE are of the same prediction; the table also has the NLL of the ensemble."""
    draws = {"draws/acc": 0.8, "draws/nll": 0.6, "draws/ece": 0.1, "draws/brier": 0.3}
    for n in (50, 100):
        write_run("train-bnn.py", n, [{"t": 1, "test_nll": 0.9, "ens[2]_test_acc": 0.7, **draws}], num_examples=n)
    own = group_runs(read_runs([sandbox / "logs"]), ["num_examples"])
    axes = plot_groups(own, ["num_examples"]).axes
    assert [axis.get_ylabel() for axis in axes] == ["accuracy", "NLL, draws of the weights", "ECE"]
    assert [axis.containers[0][0].get_ydata()[0] for axis in axes] == [0.8, 0.6, 0.1]
    table = compact_table(own, ["num_examples"])
    assert list(table["NLL"]) == ["0.9 (1)"] * 2 and list(table["NLL, draws of the weights"]) == ["0.6 (1)"] * 2


def test_a_browser_reports_no_error(groups, sandbox):
    collect.main(["--html", "--by", "num_examples", "prior_list", "--out", str(sandbox / "out")])
    assert_no_error_in_browser(sandbox / "out" / "page.html", "vae vae")


def test_the_script_sorts():
    """In node, with a document of three rows: numbers by value, then in the other order; words by the alphabet."""
    if not shutil.which("node"):
        pytest.skip("node is not installed, which runs the script")
    program = """
const cell = text => ({textContent: text});
const rows = [["b", "10 ± 1"], ["a", "9"], ["c", "-1"]].map(row => ({children: row.map(cell)}));
const body = {rows, append(...sorted) { this.rows = sorted; }};
const header = () => ({attributes: {}, listeners: [], addEventListener(_, f) { this.listeners.push(f); },
  getAttribute(n) { return this.attributes[n]; }, setAttribute(n, v) { this.attributes[n] = v; },
  removeAttribute(n) { delete this.attributes[n]; }});
const headers = [header(), header()];
const document = {querySelectorAll: () => [{querySelectorAll: () => headers, tBodies: [body]}]};
SCRIPT
const column = () => body.rows.map(row => row.children[0].textContent).join("");
const found = [];
for (const i of [1, 1, 0]) { headers[i].listeners[0](); found.push(column()); }
console.log(found.join(" "), headers[0].attributes["aria-sort"], headers[1].attributes["aria-sort"]);
"""
    done = subprocess.run(["node", "-e", program.replace("SCRIPT", SORT)], capture_output=True, text=True)
    assert done.stdout.split() == ["cab", "bac", "abc", "ascending", "undefined"], done.stderr
