"""The page about one run: the bound against numeric integration, the KL's terms, and what it is made of."""

import math
import re

import pytest
import torch
from scipy import integrate

from experiments import diagnose
from models.bayes import BayesConv2d, bayesian_layers, kl
from models.build import build_vae
from models.priors import DeepWeightPrior
from runs.files import read_yaml, write_yaml
from tests.conftest import network_argv
from tests.pages import assert_no_error_in_browser, elements_of


def log_density(vae, w):
    """log p(w) of one kernel under a VAE with one latent dimension, by quadrature in float64."""

    def joint(z):
        code = torch.tensor([[[[z]]]], dtype=torch.float64)
        mean, variance = vae.decode(code)
        log_p = torch.distributions.Normal(mean, variance.sqrt()).log_prob(w).sum()
        return (log_p + torch.distributions.Normal(0.0, 1.0).log_prob(code).sum() + 10).exp().item()

    return torch.tensor(integrate.quad(joint, -8, 8, limit=200)[0]).log() - 10


def test_the_bounds():
    """The importance-weighted KL is that of the density by quadrature; KL_aux is above it by the gap."""
    torch.manual_seed(0)
    vae = build_vae(3, 1, 3).double()
    layer = BayesConv2d(2, 3, 3, log_variance=-2.0).double()
    layer.prior = DeepWeightPrior(vae)
    torch.manual_seed(1)
    with torch.no_grad():
        found = diagnose.bound_gap(layer, 6, 2000)
        torch.manual_seed(1)
        order = torch.randperm(6)
        mean = layer.mean.weight.flatten(0, 1).unsqueeze(1)[order]
        w = mean + torch.tensor(-1.0).exp() * torch.randn_like(mean)
        expected = -torch.stack([log_density(vae, one) for one in w.split(1)]).mean().item()
    entropy = 9 * 0.5 * (-2.0 + torch.log(torch.tensor(2 * torch.pi)).item() + 1)
    assert found["KL by 2000 codes"] == pytest.approx(expected - entropy, abs=0.02)
    assert found["gap"] > 3 * found["error of the gap"] > 0
    assert found["gap"] == pytest.approx(found["KL_aux per kernel"] - found["KL by 2000 codes"])
    assert layer.prior.z_samples == 0


@pytest.mark.parametrize("options", [[], ["--reverse", "train", "--classifier_prior", "sn"], ["--prior", "no"]])
def test_the_page(options, small_inputs, script, tmp_path, capsys):
    argv = [*network_argv(small_inputs, "fconv", "bayes", "vae"), "--prior", "vae", "--ens", "2", *options]
    root = script("train-bnn.py").main(argv).root
    out = tmp_path / "d.html"
    diagnose.main([str(root), "--out", str(out), "--samples", "20", "--kernels", "3"])
    elements = elements_of(out.read_text())
    tags = [tag for tag, _ in elements.tags]
    sampled = "no" not in options
    assert tags.count("svg") == 1 and tags.count("img") == 2 and tags.count("table") == 1 + sampled
    net = diagnose.load_with_priors(str(root))
    for name, layer in net.named_modules():
        assert (name in elements.text) or layer not in bayesian_layers(net)
    rows = diagnose.layer_rows(net, 3)
    for row, layer in zip(rows, bayesian_layers(net), strict=True):
        q = torch.distributions.Normal(layer.mean.weight, (0.5 * layer.log_variance()).exp())
        assert row["layer"] in elements.text
        assert row["- entropy"] == pytest.approx(-q.entropy().sum().item(), rel=1e-4)
        assert math.isnan(row["KL"]) == math.isnan(row["cross entropy"]) == (not sampled)
    if sampled:
        assert sum(row["KL"] for row in rows) == pytest.approx(kl(net).item(), rel=0.2)
    assert re.search(r"page: .*d\.html", capsys.readouterr().out)


def test_a_browser_reports_no_error(small_inputs, script, tmp_path):
    argv = [*network_argv(small_inputs, "fconv", "bayes", "vae"), "--prior", "vae", "--ens", "2"]
    root, out = script("train-bnn.py").main(argv).root, tmp_path / "d.html"
    diagnose.main([str(root), "--out", str(out), "--samples", "20", "--kernels", "3"])
    assert_no_error_in_browser(out, "The bound of the KL")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"inputs": {"vae_list": "0" * 64}}, "its --vae_list has changed since this run, expected the same"),
        ({"reverse": "train"}, "model.torch: features.conv1.prior"),
    ],
)
def test_a_run_with_another_prior(change, message, small_inputs, script, tmp_path, capsys):
    """The VAEs at its paths, or the options in its params.yaml, are no longer those that the network learnt with."""
    argv = [*network_argv(small_inputs, "fconv", "bayes", "vae"), "--prior", "vae", "--ens", "2"]
    root = script("train-bnn.py").main(argv).root
    write_yaml(root / "params.yaml", read_yaml(root / "params.yaml") | change)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        diagnose.main([str(root), "--out", str(tmp_path / "d.html")])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err and len(err.splitlines()) == 1


def test_another_run(small_inputs, script, capsys):
    root = script("train-net.py").main(network_argv(small_inputs, "fconv", "vanilla", "xavier")).root
    with pytest.raises(SystemExit) as stop:
        diagnose.main([str(root)])
    assert stop.value.code == 2 and "found no Bayesian network" in capsys.readouterr().err
