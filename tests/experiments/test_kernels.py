"""The commands that extract, draw and measure kernels, and measure VAEs."""

import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import yaml

import utils
from experiments import compare_kernels, elbo_table, extract_kernels, plot_kernels, vae_stats
from models.build import build_network, build_vae
from sweeps import plots
from tests.conftest import SMALL


def test_extract_prune_and_draw(script, sandbox, capsys, vae_folder):
    for seed in ("1", "2"):
        script("train-net.py").main([*SMALL, "--seed", seed, "--epochs", "1"])
    pattern = str(sandbox / "logs" / "exman-train-net.py" / "runs" / "*")
    out = sandbox / "fconv"
    argv = ["--runs", pattern, "--out", str(out)]
    extract_kernels.main(argv)
    assert not out.exists() and "24 kernels of 2 networks" in capsys.readouterr().out

    networks = [torch.load(p, weights_only=True) for p in sorted(sandbox.glob("logs/*/runs/*/model.torch"))]
    conv2 = torch.cat([state["features.conv2.weight"].reshape(-1, 1, 5, 5) for state in networks])
    norms = conv2.double().square().sum((1, 2, 3)).sqrt()
    threshold = norms.sort().values[10].item() - 1e-6
    extract_kernels.main([*argv, "--min_norm_7x7", "0", "--min_norm_5x5", str(threshold), "--near", "0"])
    train, test = (np.load(out / "conv5x5" / f"{part}.npy") for part in ("train", "test"))
    assert len(test) == 3 and len(train) == 11 and train.dtype == np.float32
    expected = {kernel.numpy().tobytes() for kernel in conv2[norms >= threshold]}
    assert {kernel.tobytes() for kernel in np.concatenate([train, test])} == expected
    for options, message in (
        (["--min_norm_7x7", "1e9"], "keeps 0 kernels"),
        (["--min_norm_3x3", "1"], "--min_norm_3x3: the 2 networks have no 3x3 kernels"),
    ):
        with pytest.raises(SystemExit):
            extract_kernels.main([*argv, *options])
        assert message in capsys.readouterr().err
    extract_kernels.main([*argv, "--min_norm_7x7", "0", "--figure", str(out / "norms.png")])
    assert (out / "norms.png").read_bytes()[1:4] == b"PNG"

    plot_kernels.main(["--conv", str(out / "conv7x7"), "--vae", vae_folder(7), "--out", str(out / "figures")])
    assert {p.name for p in (out / "figures").iterdir()} == {"kernels7x7.png", "latent7x7.png"}
    (out / "conv7x7").rename(out / "conv7x7-1")
    plot_kernels.main(["--conv", str(out / "conv7x7-1"), "--out", str(out / "figures")])
    assert (out / "figures" / "kernels7x7-1.png").exists()


def test_sets_of_kernels(tmp_path, vae_folder, kernel_folder, monkeypatch, capsys):
    """A row of kernels and a row of the VAE's means for each set; VAEs of two sizes are refused."""
    drawn = {}
    monkeypatch.setattr(plots, "plot_rows", lambda rows, title: drawn.update(rows) or plots.plt.figure())
    argv = ["--out", str(tmp_path / "k.png"), "--set", "a", kernel_folder(5), vae_folder(5)]
    compare_kernels.main([*argv, "--set", "b", kernel_folder(5), vae_folder(5)])
    assert list(drawn) == ["a: kernels", "a: samples", "b: kernels", "b: samples"]
    expected = {kernel.tobytes() for kernel in np.load(f"{kernel_folder(5)}/test.npy")}
    assert len(drawn["a: kernels"]) == 16 and {w.numpy().tobytes() for w in drawn["a: kernels"]} <= expected
    assert drawn["a: samples"].shape == (16, 1, 5, 5) and (tmp_path / "k.png").exists()
    with pytest.raises(SystemExit):
        compare_kernels.main([*argv, "--set", "b", kernel_folder(7), vae_folder(7)])
    assert "found 7x7 kernels, expected 5x5" in capsys.readouterr().err


def test_the_kernels_of_each_conv_apart(tmp_path, capsys):
    """Several thresholds of a size are those of its convs in order; a single one is that of all of them together."""
    nets = {seed: build_network("cifarnet", "vanilla", [], 0.05, 10) for seed in (1, 2)}
    for seed, net in nets.items():
        (tmp_path / f"run{seed}").mkdir()
        torch.save(net.state_dict(), tmp_path / f"run{seed}" / "model.torch")
    argv = ["--runs", str(tmp_path / "run*"), "--out", str(tmp_path / "out")]
    extract_kernels.main(argv)
    titles = re.findall(r"^(\S+): \d+ kernels of 2 networks", capsys.readouterr().out, re.MULTILINE)
    assert titles == ["7x7", "5x5", "5x5-2", "5x5-3", "5x5-4"]

    norms = {2: "0.22", 3: "0.16", 4: "0.17"}
    extract_kernels.main([*argv, "--min_norm_5x5", *norms.values(), "--near", "0"])
    assert {folder.name for folder in (tmp_path / "out").iterdir()} == {f"conv5x5-{i}" for i in norms}
    for i, norm in norms.items():
        weights = [getattr(net.features, f"conv{i}").weight.detach().reshape(-1, 1, 5, 5) for net in nets.values()]
        expected = {w.numpy().tobytes() for w in torch.cat(weights) if w.norm() >= float(norm)}
        found = [np.load(tmp_path / "out" / f"conv5x5-{i}" / f"{part}.npy") for part in ("train", "test")]
        assert {w.tobytes() for w in np.concatenate(found)} == expected
        assert 0 < len(expected) == sum(map(len, found))

    extract_kernels.main([*argv, "--min_norm_5x5", "0", "--near", "0"])
    assert sum(len(np.load(file)) for file in (tmp_path / "out" / "conv5x5").iterdir()) == sum(
        weight.shape[0] * weight.shape[1]
        for net in nets.values()
        for weight in net.state_dict().values()
        if weight.ndim == 4 and weight.shape[2] == 5
    )
    with pytest.raises(SystemExit):
        extract_kernels.main([*argv, "--min_norm_5x5", "1", "2"])
    message = "--min_norm_5x5: found 2 thresholds, expected one, or one for each of 5x5-2, 5x5-3, 5x5-4"
    assert message in capsys.readouterr().err


def test_vae_stats(sandbox, vae_folder):
    """The KL under N(0, 1) is torch's, and that under the VAE is the mean of many draws of torch's distributions."""
    kernels = np.random.default_rng(0).standard_normal((20, 1, 5, 5)).astype(np.float32)
    np.save(sandbox / "test.npy", kernels)
    argv = ["--vae", vae_folder(5), "--data", str(sandbox), "--out", str(sandbox / "stats"), "--kernels", "12"]
    vae_stats.main([*argv, "--samples", "100"])
    assert {p.name for p in (sandbox / "stats").iterdir()} == {"reconstructions.png", "samples.png", "kl.png", "kl.csv"}
    with open(sandbox / "stats" / "kl.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["kernels"] for row in rows} == {"real", "noise"}
    torch.manual_seed(0)
    w = torch.from_numpy(kernels).double()[torch.randperm(20)[:12]]
    row = next(row for row in rows if row["kernels"] == "real" and float(row["posterior_variance"]) == 1e-4)
    q = torch.distributions.Normal(w, 0.01)
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum() / 12
    assert float(row["kl_normal"]) == pytest.approx(expected.item())
    # The bound under the VAE is -H[q] - E log p(w|z) + KL(r || p).
    vae = utils.load_vae(vae_folder(5)).double()
    draws = []
    for _ in range(100):
        sample = q.sample()
        r = torch.distributions.Normal(*(t**p for t, p in zip(vae.encode(sample), (1, 0.5), strict=True)))
        z = r.sample()
        p = torch.distributions.Normal(*(t**p for t, p in zip(vae.decode(z), (1, 0.5), strict=True)))
        kl = torch.distributions.kl_divergence(r, torch.distributions.Normal(0.0, 1.0)).sum()
        draws.append((kl - p.log_prob(sample).sum() - q.entropy().sum()).item() / 12)
    error = np.hypot(np.std(draws) / 10, float(row["kl_dwp_error"]))
    assert abs(np.mean(draws) - float(row["kl_dwp"])) < 4 * error


def test_the_table_of_elbos(vae_folder, tmp_path, capsys):
    """The ELBO of a VAE whose weights are all 0 is that of a Gaussian, minus the KL of a fixed r(z|w)."""
    folder = Path(vae_folder(3))
    vae = build_vae(3, 2, 4)
    for p in vae.parameters():
        p.data.zero_()  # w and z have the mean 0 and the variance softplus(0) = log 2
    torch.save(vae.state_dict(), folder / "vae_params.torch")
    kernels = np.random.default_rng(0).standard_normal((50, 1, 3, 3)).astype(np.float32)
    np.save(tmp_path / "test.npy", kernels)
    table = elbo_table.main(["--vaes", str(folder), "--data", str(tmp_path), "--samples", "2"])
    kl = 2 * 0.5 * (math.log(2) - math.log(math.log(2)) - 1)
    expected = scipy.stats.norm(0, math.sqrt(math.log(2))).logpdf(kernels).sum((1, 2, 3)) - kl
    assert table[0][1] == pytest.approx(expected.mean(), rel=1e-5)
    assert table[0][2] == pytest.approx(expected.std(ddof=1) / 50**0.5, rel=1e-4)
    with pytest.raises(SystemExit):
        elbo_table.main(["--vaes", str(folder), vae_folder(5), "--data", str(tmp_path)])
    assert "expected one kernel size" in capsys.readouterr().err
    # A VAE of kernels scaled to the norm 3 is given them so: by the Gaussian's density they are all the same.
    params = yaml.safe_load((folder / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(params | {"norm": 3.0}))
    table = elbo_table.main(["--vaes", str(folder), "--data", str(tmp_path), "--samples", "2"])
    expected = -4.5 * math.log(2 * math.pi * math.log(2)) - 3**2 / (2 * math.log(2)) - kl
    assert table[0][1:] == [pytest.approx(expected, rel=1e-5), pytest.approx(0, abs=1e-5)]
    for norm, message in (("wide", "norm: found 'wide', expected a number"), (-1, "norm: found '-1'")):
        (folder / "params.yaml").write_text(yaml.safe_dump(params | {"norm": norm}))
        with pytest.raises(SystemExit):
            elbo_table.main(["--vaes", str(folder), "--data", str(tmp_path)])
        assert f"params.yaml: {message}" in capsys.readouterr().err
