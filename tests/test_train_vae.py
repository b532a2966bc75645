"""train-vae.py, end to end on small kernels: log, files, the loss, and the flow."""

import numpy as np
import pytest
import torch

import utils
from models.build import build_vae
from models.configs import VAES
from runs.device import seed_all
from runs.errors import UserError
from tests.conftest import read_log


@pytest.mark.parametrize("k", VAES)
@pytest.mark.parametrize("var", ["train", "0.05"])
def test_train_vae(script, sandbox, kernel_folder, k, var):
    argv = ["--data_dir", kernel_folder(k), "--kernel_dim", str(k), "--z_dim", "2", "--hidden_dim", "4", "--var", var]
    run = script("train-vae.py").main([*argv, "--num_epochs", "15", "--eval_freq", "15"])
    rows = read_log(run.root)
    assert list(rows[0]) == ["t", "train_elbo", "train_ll", "train_kl", "test_elbo", "test_ll", "test_kl"]
    assert rows[-1]["test_elbo"] > rows[0]["test_elbo"]
    vae = utils.load_vae(run.root)
    assert not any(p.requires_grad for p in vae.parameters()) and not vae.training
    mean, variance = vae.decode(torch.zeros(3, 2, 1, 1))
    assert mean.shape == variance.shape == (3, 1, k, k)
    if var != "train":
        assert (variance == float(var)).all()
    files = [str(run.root / name) for name in ("vae_params.torch", "opt_params.torch")]
    script("train-vae.py").main([*argv, "--num_epochs", "1", "--resume_vae", files[0], "--resume_opt", files[1]])


def test_the_kl_warmup_weighs_the_kl_in_the_loss_alone(script, sandbox):
    """The parameters after one step of Adam on -log-likelihood + KL / 3, written out, and the ELBO logged in full."""
    kernels = torch.randn(20, 1, 3, 3)
    np.save(sandbox / "k.npy", kernels.numpy())
    files = ["--train", str(sandbox / "k.npy"), "--test", str(sandbox / "k.npy"), "--device", "cpu"]
    shape = ["--kernel_dim", "3", "--z_dim", "2", "--hidden_dim", "3", "--batch_size", "20", "--num_epochs", "1"]
    run = script("train-vae.py").main([*files, *shape, "--kl_warmup", "2", "--lr", "0.01"])
    seed_all(42)
    vae = build_vae(3, 2, 3)
    elbo = vae.elbo(kernels[torch.randperm(20)])
    (elbo.kl / 3 - elbo.ll).mean().backward()
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
    optimizer.step()
    trained = torch.load(run.root / "vae_params.torch", weights_only=True)
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-3, atol=1e-5)
    assert run.rows[0]["train_elbo"] == pytest.approx(elbo.elbo.mean().item(), rel=1e-5)


def test_kernels_of_one_norm(script, sandbox, capsys):
    """`--norm 2` trains as on kernels that numpy scaled to the norm 2; a kernel of norm 0 cannot be scaled."""
    kernels = np.random.default_rng(0).standard_normal((20, 1, 5, 5)) * np.linspace(0.1, 5, 20).reshape(20, 1, 1, 1)
    kernels[:2] *= np.array([1e22, 1e-26]).reshape(2, 1, 1, 1)  # their squares are no numbers of float32
    scaled = 2 * kernels / np.sqrt((kernels**2).sum((1, 2, 3), keepdims=True))
    argv = ["--kernel_dim", "5", "--z_dim", "2", "--hidden_dim", "3", "--batch_size", "7", "--num_epochs", "2"]
    runs = []
    for name, array, options in (("k", kernels, ["--norm", "2"]), ("scaled", scaled, [])):
        (sandbox / name).mkdir()
        for part in ("train", "test"):
            np.save(sandbox / name / f"{part}.npy", array)
        runs.append(script("train-vae.py").main([*argv, "--data_dir", str(sandbox / name), *options]))
    for column, value in runs[0].rows[-1].items():
        assert value == pytest.approx(runs[1].rows[-1][column], rel=1e-3), column
    kernels[3] = 0
    np.save(sandbox / "k" / "test.npy", kernels)
    with pytest.raises(SystemExit):
        script("train-vae.py").main([*argv, "--data_dir", str(sandbox / "k"), "--norm", "2"])
    file = sandbox / "k" / "test.npy"
    assert f"--test {file} has 1 kernels of norm 0, which cannot be scaled" in capsys.readouterr().err


@pytest.mark.parametrize("k", VAES)
def test_train_a_flow(script, small_inputs, tmp_path, k, capsys):
    kernels = np.random.default_rng(0).standard_normal((300, 1, k, k)).cumsum(3).astype(np.float32)
    for part in ("train", "test"):
        np.save(tmp_path / f"{part}.npy", kernels)
    argv = ["--data_dir", str(tmp_path), "--kernel_dim", str(k), "--kind", "flow", "--hidden_dim", "8"]
    run = script("train-vae.py").main([*argv, "--transforms", "2", "--num_epochs", "10"])
    assert run.rows[-1]["test_elbo"] > run.rows[0]["test_elbo"] and run.rows[-1]["test_kl"] == 0
    flow = utils.load_flow(run.root)
    with torch.no_grad():
        assert flow.log_prob(torch.from_numpy(kernels)).mean().item() == pytest.approx(
            run.rows[-1]["test_ll"], rel=1e-4
        )
        assert flow.sample(3).shape == (3, 1, k, k)
    with pytest.raises(UserError, match="found a flow, expected a vae"):
        utils.load_vae(run.root)
    with pytest.raises(SystemExit):
        script("train-vae.py").main([*argv, "--z_dim", "3"])
    assert "--z_dim: found 3 with --kind flow" in capsys.readouterr().err
