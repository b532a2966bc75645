"""What the KL alone makes of posteriors: against a prior whose least KL is known, and a VAE that decodes one kernel."""

import numpy as np
import pytest
import torch
import yaml

import utils
from experiments import whole_kl
from models.build import build_vae
from models.priors import NormalPrior
from sweeps import rank_vaes

NETWORK = ["--data", "not-mnist", "--hid_dim", "2", "3", "--num_examples", "10", "--classifier_lamb", "0.5"]


def test_the_posterior_of_the_least_kl_to_a_normal_prior_is_the_prior():
    torch.manual_seed(0)
    start = torch.randn(20, 1, 3, 3)
    mean, deviation, kl = whole_kl.least_kl(NormalPrior(0.5), start, 1500, 0.05)
    assert mean.abs().max() < 1e-2 and (deviation - 0.5).abs().max() < 1e-2 and abs(kl) < 1e-2
    mean, deviation, _ = whole_kl.least_kl(NormalPrior(0.5), start, 1, 0.05)  # the first step of Adam is the rate
    torch.testing.assert_close(mean, start - 0.05 * start.sign())
    torch.testing.assert_close(2 * deviation.log(), torch.full_like(start, -10 + 0.05))


def test_the_table(script, small_inputs, tmp_path, capsys):
    """All posteriors become the one kernel that a VAE decodes; the accuracy before is that of the ranking."""
    vae = build_vae(7, 2, 4, 0.01)
    with torch.no_grad():
        vae.decoder.decoder[0].weight.zero_()  # the code has no effect
    (tmp_path / "one").mkdir()
    torch.save(vae.state_dict(), tmp_path / "one" / "vae_params.torch")
    (tmp_path / "one" / "params.yaml").write_text(
        yaml.dump({"z_dim": 2, "hidden_dim": 4, "kernel_dim": 7, "var": 0.01})
    )
    paths = [str(tmp_path / "one"), str(small_inputs / "vae5")]
    options = ["--kernels", "30", "--steps", "200", "--rate", "0.03", "--networks", "2"]
    (one,) = whole_kl.main(["--vae_list", *paths, *options, "--", *NETWORK])
    decoded = vae.decode(torch.zeros(1, 2, 1, 1))[0]
    assert one["share_1"] < 0.1 and one["norm_1"].split(", ")[0] == f"{decoded.norm():.3f}"
    assert float(one["norm_1"].split(", ")[1]) == pytest.approx(decoded.norm().item(), abs=0.05)
    files = [str(tmp_path / f"{k}.npy") for k in (7, 5)]
    for file, source in zip(files, (vae, utils.load_vae(paths[1])), strict=True):
        torch.manual_seed(0)
        np.save(file, source.decode(torch.randn(30, source.z_dim, 1, 1))[0].detach().numpy())
    network = script("train-net.py").parse([*NETWORK, "--init_list", "filters", "filters", "--filters_list", *files])
    sources = utils.load_sources(network, torch.device("cpu"))
    (row,) = rank_vaes.rank_sources(network, [sources], rank_vaes.SPLITS, range(2))
    assert row["acc"] == one["acc_before"] and "share_2" in capsys.readouterr().out
