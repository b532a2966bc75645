"""The ranking of VAEs by frozen features, against an optimizer of another library."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import utils
from models.build import build_network, init_network
from sweeps import rank_vaes

TASKS = ["--splits", "3", "4", "--seeds", "5", "6"]
NETWORK = ["--data", "not-mnist", "--hid_dim", "2", "3", "--num_examples", "10", "--classifier_lamb", "0.5"]


def expected_scores(vaes, seed, split, scale):
    """Accuracy and NLL of the classifier that minimizes the cross-entropies plus |parameters|^2 / (2 * 0.5^2)."""
    train, test = utils.load_data("not-mnist")
    sources = [{"vae": utils.load_vae(path)} for path in vaes]
    torch.manual_seed(seed)
    net = build_network("fconv", "vanilla", [2, 3], 1.0, 10).eval()
    init_network(net, ["vae-qmc"] * 2, sources)
    index = utils.few_shot_split(train.labels, 10, split)
    with torch.no_grad():
        x, held_out = (net.extract(part.images / 255).double().numpy() for part in (train[index], test))
    if scale is None:
        return (x**2).sum(1)
    x, held_out = (np.c_[part * scale, np.ones(len(part))] for part in (x, held_out))
    y = train.labels[index].numpy()

    def objective(parameters):
        logits = x @ parameters.reshape(10, -1).T
        nll = np.logaddexp.reduce(logits, 1) - logits[np.arange(10), y]
        return nll.sum() + (parameters**2).sum() / (2 * 0.5**2)

    best = minimize(objective, np.zeros(10 * x.shape[1]), method="BFGS", options={"gtol": 1e-7}).x.reshape(10, -1)
    logits = held_out @ best.T
    labels = test.labels.numpy()
    nll = np.logaddexp.reduce(logits, 1) - logits[np.arange(len(labels)), labels]
    return (logits.argmax(1) == labels).mean(), nll.mean()


def test_the_scores(small_inputs, capsys):
    vaes = [str(small_inputs / "vae7"), str(small_inputs / "vae5")]
    (row,) = rank_vaes.main([*TASKS, "--vae_list", *vaes, "--", *NETWORK])
    by_seed = []
    for seed in (5, 6):
        squares = np.concatenate([expected_scores(vaes, seed, split, None) for split in (3, 4)])
        scale = 10 / squares.mean() ** 0.5
        by_seed.append(np.mean([expected_scores(vaes, seed, split, scale) for split in (3, 4)], 0))
    assert row["acc"] == pytest.approx(np.mean(by_seed, 0)[0], abs=0.026)  # one of 40 predictions may be on an edge
    assert row["nll"] == pytest.approx(np.mean(by_seed, 0)[1], rel=1e-5)
    assert row["nll_se"] == pytest.approx(abs(by_seed[0][1] - by_seed[1][1]) / 2, rel=1e-2)
    assert row["acc_difference"] == row["acc_difference_se"] == 0 and str(small_inputs) in capsys.readouterr().out


def test_candidates_are_paired(small_inputs):
    """The same candidate twice has no difference."""
    vaes = [str(small_inputs / "vae7"), str(small_inputs / "vae5")]
    first, second = rank_vaes.main([*TASKS, "--vae_list", *vaes, "--vae_list", *vaes, "--", *NETWORK])
    assert second["acc_difference"] == second["acc_difference_se"] == 0 and first["nll"] == second["nll"]


def test_a_label_without_images(small_inputs, tmp_path):
    """Its class has no column of the classifier. The scores do not depend on which of five labels it is."""
    rng, found = np.random.default_rng(0), []
    classes = np.arange(24) % 4
    images = (60 * classes[:, None, None] + rng.integers(0, 40, (24, 28, 28))).astype(np.uint8)
    vaes = [str(small_inputs / "vae7"), str(small_inputs / "vae5")]
    for used in ([1, 2, 3, 4], [0, 1, 3, 4]):
        labels = np.array(used)[classes]
        np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
        argv = [*TASKS, "--vae_list", *vaes, "--", *NETWORK[2:], "--data", str(tmp_path / "x.npz")]
        (row,) = rank_vaes.main(argv)
        found.append((row["acc"], row["nll"]))
    assert found[0] == pytest.approx(found[1], rel=1e-6) and found[0][0] > 0.25


def test_roughness():
    """0 for constant kernels; of independent weights the ratio of the expectations; and a kernel of three weights."""
    assert rank_vaes.roughness(torch.full((2, 5, 5), -3.0)) == 0
    kernels = torch.from_numpy(np.random.default_rng(0).standard_normal((2000, 7, 7)))
    assert rank_vaes.roughness(kernels) == pytest.approx(4 - 4 / 7, rel=0.01)
    corner = torch.tensor([[[1.0, 2.0], [-1.0, 0.0]]])
    assert rank_vaes.roughness(corner) == pytest.approx((1 + 1 + 4 + 4) / 6)


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--vae_list", "a"], "--vae_list: found 1 entries, expected one for conv 2"),
        (["--vae_list", "a", "b"], "--vae_list entry 1"),
        (["--vae_list", "a", "b", "--seeds", "1"], "--seeds: found [1], expected at least two, each once"),
        (["--vae_list", "a", "b", "--seeds", "1", "1"], "--seeds: found [1, 1]"),
        (["--vae_list", "a", "b", "--", "--hid_dim", "3"], "--hid_dim: found 1 numbers, expected 2 for fconv"),
        (["--vae_list", "a", "b", "--", "--model", "cifarnet"], "--vae_list: found 2 entries"),
        (["--vae_list", "a", "b", "--", "--classifier_lamb", "1"], "--num_examples: found none"),
        (["--vae_list", "a", "b", "--", "--num_examples", "9"], "--classifier_lamb: found none"),
        (["--vae_list", "VAE7", "VAE5", "--", *NETWORK, "--num_examples", "99"], "--num_examples: found 99"),
    ],
)
def test_mistakes(argv, expected, small_inputs, capsys):
    with pytest.raises(SystemExit) as stop:
        rank_vaes.main([word.replace("VAE", f"{small_inputs}/vae") for word in argv])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and expected in err and len(err.splitlines()) == 1
