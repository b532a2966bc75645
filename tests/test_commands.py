"""The three commands and the experiments, end to end on small data in the true formats."""

import csv
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from sklearn.model_selection import train_test_split

import runs
import utils
from experiments import elbo_table, extract_kernels, plot_kernels, vae_stats
from models.configs import VAE_KERNEL_SIZES
from models.fconv import FConv
from models.vae import VAES

SMALL = ["--data", "not-mnist", "--hid_dim", "3", "4", "--epochs", "2", "--bs", "32", "--device", "cpu"]
BNN_COLUMNS = ["t", "train_nll", "KL", "train_loss", "test_nll", "test_loss", "train_acc"]
BNN_COLUMNS += ["det_test_acc", "samp_test_acc", "ens[3]_test_acc", "lr", "sec"]


def read_log(run):
    with open(run.root / f"{run.script}-logs.csv") as file:
        return list(csv.DictReader(file))


def lists(vae_folder, prior):
    return ["--vae_list", vae_folder(7), vae_folder(5), "--init_list", "vae", "vae", "--prior_list", prior, prior]


@pytest.mark.parametrize("prior", ["sn", "vae", "no"])
def test_train_bnn(script, sandbox, vae_folder, prior):
    argv = [*SMALL, *lists(vae_folder, prior), "--num_examples", "20", "--ens", "3", "--kl_kernels", "5"]
    run = script("train-bnn.py").main(argv)
    rows = read_log(run)
    assert list(rows[0]) == BNN_COLUMNS and [row["t"] for row in rows] == ["1", "2"]
    last = {key: float(value) for key, value in rows[-1].items()}
    assert all(np.isfinite(list(last.values())))
    assert last["train_loss"] == pytest.approx(20 * last["train_nll"] + last["KL"], rel=1e-5)
    assert last["test_loss"] == pytest.approx(last["test_nll"] + last["KL"], rel=1e-5)
    assert last["lr"] == pytest.approx(1e-3 / 2)

    state = torch.load(run.root / "model.torch", weights_only=True)
    assert {"features.conv1.mean.weight", "features.conv2.mean.bias", "features.conv2.var.weight"} < state.keys()
    assert "classifier.weight" in state and len(state) == 8
    params = yaml.safe_load((run.root / "params.yaml").read_text())
    assert params["hid_dim"] == [3, 4] and params["root"] == str(run.root) and params["id"] == 1
    base = sandbox / "logs" / "exman-train-bnn.py"
    assert run.root.parent == base / "runs"
    assert yaml.safe_load((base / "index" / f"{run.root.name}.yaml").read_text()) == params
    assert (run.root / "train-bnn.py-logs.out").read_text().split()[0] == "t"


def test_the_objective_is_n_times_nll_plus_kl(script, sandbox):
    """Adam's first moment after one step is a tenth of the gradient, here written out on the whole data set."""
    shape = ["--epochs", "1", "--bs", "60", "--logvarinit", "-50", "--lamb", "0.5"]
    run = script("train-bnn.py").main([*SMALL, *shape, "--lr", "1e-12", "--ens", "1"])
    net = FConv("bayes", (3, 4)).double()
    net.load_state_dict(torch.load(run.root / "model.torch", weights_only=True))
    train, _ = utils.load_data("not-mnist")
    nll = torch.nn.functional.cross_entropy(net(train.images.double() / 255), train.labels, reduction="sum")
    kl = 0.0
    for layer in (net.features.conv1, net.features.conv2):
        q = torch.distributions.Normal(layer.mean.weight, (0.5 * layer.var["weight"]).exp())
        kl = kl + torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 0.5)).sum()
    (nll + kl).backward()
    moments = torch.load(run.root / "opt.torch", weights_only=True)["state"]
    for i, (name, parameter) in enumerate(net.named_parameters()):
        expected = 0.1 * parameter.grad
        error = (moments[i]["exp_avg"] - expected).norm() / expected.norm()
        assert error < 1e-2, name


def test_the_dwp_run_learns(script, sandbox, vae_folder):
    argv = [*SMALL, *lists(vae_folder, "vae"), "--epochs", "60", "--lr", "0.01", "--eval_freq", "60", "--ens", "3"]
    rows = read_log(script("train-bnn.py").main(argv))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert float(rows[-1]["ens[3]_test_acc"]) > 0.5 > float(rows[0]["ens[3]_test_acc"])


@pytest.mark.parametrize("net_cfg", ["vanilla", "vanilla-do"])
def test_train_net_then_a_bayesian_network_from_it(script, sandbox, net_cfg):
    do = ["--do", "0.2", "0.3"] if "do" in net_cfg else []
    run = script("train-net.py").main([*SMALL, "--net_cfg", net_cfg, "--l2", "0.01", *do])
    row = read_log(run)[-1]
    assert list(row) == [
        "t",
        "loss",
        "train_nll",
        "test_nll",
        "train_acc",
        "test_acc",
        "lr",
        "sec",
        "l2_norm",
        "dwp_reg",
    ]
    state = torch.load(run.root / "model.torch", weights_only=True)
    features = [value for name, value in state.items() if name.startswith("features.")]
    assert float(row["l2_norm"]) == pytest.approx(sum(v.double().square().sum().item() for v in features), rel=1e-5)

    still = script("train-net.py").main(
        [*SMALL, "--net_cfg", net_cfg, "--l2", "0.01", *do, "--lr", "1e-12", "--resume", str(run.root)]
    )
    still_row = {key: float(value) for key, value in read_log(still)[-1].items()}
    l2_term = still_row["loss"] - still_row["train_nll"]
    assert l2_term == pytest.approx(0.01 * still_row["l2_norm"], rel=1e-4)
    opts = [torch.load(r.root / "opt.torch", weights_only=True) for r in (run, still)]
    assert [opt["state"][0]["step"] for opt in opts] == [4, 8]  # the optimizer's state went on

    net = FConv("bayes-1-0", (3, 4))
    utils.load_pretrained(net, state, "")
    torch.testing.assert_close(net.features.conv1.mean.weight, state["features.conv1.weight"])
    torch.testing.assert_close(net.classifier.bias, state["classifier.bias"])
    assert (net.features.conv1.var["weight"] == -10).all()
    argv = ["--init_list", "pretrained", "--pretrained", str(run.root / "model.torch"), "--net_cfg", "bayes-1-0"]
    script("train-bnn.py").main([*SMALL, *argv, "--ens", "2"])


def test_warm_start_and_config(script, sandbox, capsys):
    first = script("train-bnn.py").main([*SMALL, "--ens", "2", "--name", "first"])
    with open(first.root / "params.yaml", "a") as file:
        file.write("gpu_id: '3'\nverbose: 1\n")
    second = script("train-bnn.py").main(
        ["--config", str(first.root / "params.yaml"), "--resume", str(first.root), "--epochs", "1", "--lr", "1e-12"]
    )
    assert capsys.readouterr().err.endswith("no such option here, ignored: gpu_id, verbose\n")
    a, b = (torch.load(run.root / "model.torch", weights_only=True) for run in (first, second))
    torch.testing.assert_close(a, b)
    assert second.root != first.root and len(read_log(second)) == 1


@pytest.mark.parametrize("k", VAE_KERNEL_SIZES)
@pytest.mark.parametrize("var", ["train", "0.05"])
def test_train_vae(script, sandbox, k, var):
    kernels = np.random.default_rng(0).standard_normal((300, 1, k, k)).astype(np.float32)
    for part in ("train", "test"):
        np.save(sandbox / f"{part}.npy", 0.2 * kernels)
    argv = ["--data_dir", str(sandbox), "--kernel_dim", str(k), "--z_dim", "2", "--hidden_dim", "4", "--var", var]
    run = script("train-vae.py").main([*argv, "--num_epochs", "15", "--eval_freq", "15"])
    rows = read_log(run)
    assert list(rows[0]) == ["t", "train_elbo", "train_ll", "train_kl", "test_elbo", "test_ll", "test_kl"]
    assert float(rows[-1]["test_elbo"]) > float(rows[0]["test_elbo"])
    vae = utils.load_vae(run.root)
    assert not any(p.requires_grad for p in vae.parameters()) and not vae.training
    mean, variance = vae.decode(torch.zeros(3, 2, 1, 1))
    assert mean.shape == variance.shape == (3, 1, k, k)
    if var != "train":
        assert (variance == float(var)).all()
    files = [str(run.root / name) for name in ("vae_params.torch", "opt_params.torch")]
    script("train-vae.py").main([*argv, "--num_epochs", "1", "--resume_vae", files[0], "--resume_opt", files[1]])


def test_state_dict_names_are_the_published_ones(published):
    for k, z_dim, hidden_dim in ((7, 2, 32), (5, 4, 64)):
        state = torch.load(published / f"vae{k}x{k}" / "vae_params.torch", map_location="cpu", weights_only=True)
        ours = VAES[k](z_dim, hidden_dim).state_dict()
        assert {name: v.shape for name, v in ours.items()} == {name: v.shape for name, v in state.items()}


def test_the_kl_warmup_weighs_the_kl_in_the_loss_alone(script, sandbox):
    """The parameters after one step of Adam on -log-likelihood + KL / 3, written out, and the ELBO logged in full."""
    kernels = torch.randn(20, 1, 3, 3)
    np.save(sandbox / "k.npy", kernels.numpy())
    files = ["--train", str(sandbox / "k.npy"), "--test", str(sandbox / "k.npy"), "--device", "cpu"]
    shape = ["--kernel_dim", "3", "--z_dim", "2", "--hidden_dim", "3", "--batch_size", "20", "--num_epochs", "1"]
    run = script("train-vae.py").main([*files, *shape, "--kl_warmup", "2", "--lr", "0.01"])
    utils.seed_all(42)
    vae = VAES[3](2, 3)
    elbo = vae.elbo(kernels[torch.randperm(20)])
    (elbo.kl / 3 - elbo.ll).mean().backward()
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
    optimizer.step()
    trained = torch.load(run.root / "vae_params.torch", weights_only=True)
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-3, atol=1e-5)
    assert run.rows[0]["train_elbo"] == pytest.approx(elbo.elbo.mean().item(), rel=1e-5)


def test_near_duplicates_are_dropped():
    """Against the rule kernel by kernel in float64."""
    kernels = torch.randn(60, 1, 3, 3)
    kernels = torch.cat([kernels, kernels[:20] * 1.03, kernels[5:9] * 1.2, kernels[:3] + 0.001])
    kept = []
    for kernel in kernels.double():
        if all((kernel - other).norm() > 0.05 * max(kernel.norm(), other.norm()) for other in kept):
            kept.append(kernel)
    found = utils.drop_near_duplicates(kernels, 0.05, block=7)
    assert len(found) == len(kept) == 64
    torch.testing.assert_close(found.double(), torch.stack(kept))


def test_the_table_of_elbos(vae_folder, tmp_path, capsys):
    """The ELBO of a decoder with a fixed mean and variance, and an encoder that is the prior, is a Gaussian's."""
    folder = Path(vae_folder(3))
    vae = VAES[3](2, 4)
    for p in vae.parameters():
        p.data.zero_()  # mean 0, and variance softplus(0) = log 2 of w and of z
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


def test_vae_stats(sandbox, vae_folder):
    kernels = np.random.default_rng(0).standard_normal((20, 1, 5, 5)).astype(np.float32)
    np.save(sandbox / "test.npy", kernels)
    argv = ["--vae", vae_folder(5), "--data", str(sandbox), "--out", str(sandbox / "stats"), "--kernels", "12"]
    vae_stats.main([*argv, "--samples", "400"])
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
    # Under the VAE: -H[q] - E log p(w|z) + KL(r || p), by many draws of torch's distributions.
    vae = utils.load_vae(vae_folder(5)).double()
    draws = []
    for _ in range(400):
        sample = q.sample()
        r = torch.distributions.Normal(*(t**p for t, p in zip(vae.encode(sample), (1, 0.5), strict=True)))
        z = r.sample()
        p = torch.distributions.Normal(*(t**p for t, p in zip(vae.decode(z), (1, 0.5), strict=True)))
        kl = torch.distributions.kl_divergence(r, torch.distributions.Normal(0.0, 1.0)).sum()
        draws.append((kl - p.log_prob(sample).sum() - q.entropy().sum()).item() / 12)
    error = np.hypot(np.std(draws) / 20, float(row["kl_dwp_error"]))
    assert abs(np.mean(draws) - float(row["kl_dwp"])) < 4 * error


@pytest.mark.parametrize("kind", ["vae", "filters", "recon", "flow"])
def test_init(kind, sandbox, vae_folder, flow_folder, script):
    kernels = [torch.full((40, 1, k, k), float(k)) for k in (7, 5)]
    for k, array in zip((7, 5), kernels, strict=True):
        np.save(sandbox / f"{k}.npy", array.numpy())
    args = script("train-net.py").parse(
        f"--init_list {kind} {kind} --vae_list {vae_folder(7)} {vae_folder(5)} --hid_dim 3 4 "
        f"--filters_list {sandbox}/7.npy {sandbox}/5.npy --flow_list {flow_folder(7)} {flow_folder(5)}".split()
    )
    net = FConv("vanilla", args.hid_dim)
    sources = utils.load_sources(args, torch.device("cpu"))
    torch.manual_seed(0)
    utils.init_network(net, args, sources)
    if kind == "filters":
        assert (net.features.conv1.weight == 7).all() and (net.features.conv2.weight == 5).all()
    else:
        torch.manual_seed(0)
        for layer in (net.features.conv1, net.features.conv2, net.classifier):
            torch.nn.init.xavier_normal_(torch.empty_like(layer.weight))  # draws depend on the memory layout
        with torch.no_grad():
            expected = {
                "vae": lambda: sources[0].vae.decode(torch.randn(3, 2, 1, 1))[0],
                "recon": lambda: sources[0].vae.decode(sources[0].vae.encode(kernels[0][:3])[0])[0],
                "flow": lambda: sources[0].flow.sample(3),
            }[kind]()
        torch.testing.assert_close(net.features.conv1.weight, expected.view(3, 1, 7, 7))


def test_split_is_scikit_learns():
    labels = torch.from_numpy(np.random.default_rng(0).choice(10, 6000, p=[0.05] * 5 + [0.15] * 5))
    for seed in range(5):
        ours = utils.few_shot_split(labels, 50, seed)
        expected = train_test_split(np.arange(6000), train_size=50, random_state=seed, stratify=labels.numpy())[0]
        assert ours.tolist() == expected.tolist()
        counts = np.bincount(labels[ours].numpy(), minlength=10)
        assert (np.abs(counts - 50 * np.bincount(labels.numpy()) / 6000) <= 1).all()


@pytest.mark.parametrize("epoch, expected", [(1, 1.0), (4, 1.0), (5, 1.0), (6, 5 / 6), (10, 1 / 6)])
def test_learning_rate(script, epoch, expected):
    args = script("train-net.py").parse(["--epochs", "10", "--decrease_from", "4", "--lr", "1"])
    assert runs.learning_rate(args, epoch) == pytest.approx(expected)
    args.milestones = [3, 8]
    assert runs.learning_rate(args, epoch) == 0.5 ** ((epoch > 3) + (epoch > 8))


@pytest.mark.parametrize("epoch, step, expected", [(1, None, 1.0), (6, None, 0.5), (6, 2, 0.5 * 0.3**2)])
def test_vae_learning_rate(script, epoch, step, expected):
    module = script("train-vae.py")
    decay = ["--lr_decay_step", str(step), "--decay", "0.3"] if step else []
    args = module.parse(["--kernel_dim", "5", "--data_dir", "x", "--num_epochs", "10", "--lr", "1", *decay])
    assert module.learning_rate(args, epoch) == pytest.approx(expected)


def test_as_processes(sandbox):
    """Help, a mistake and two launches at once, with no terminal: no progress bar, two numbers."""
    root = runs.ROOT
    for name in ("train-net.py", "train-vae.py", "train-bnn.py"):
        done = subprocess.run([sys.executable, root / name, "--help"], capture_output=True, text=True, check=True)
        assert "default" in done.stdout and "run:" in done.stdout
    done = subprocess.run([sys.executable, root / "train-bnn.py", "--bs", "0"], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not done.stdout
    start = [sys.executable, root / "train-net.py", *SMALL, "--epochs", "1"]
    both = [subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0] and [err for _, err in outputs] == ["", ""]
    names = sorted(p.name for p in (sandbox / "logs" / "exman-train-net.py" / "runs").iterdir())
    assert [name[:7] for name in names] == ["000001-", "000002-"]


def test_same_seed_same_numbers(script, sandbox, vae_folder):
    argv = [*SMALL, *lists(vae_folder, "vae"), "--ens", "2", "--kl_kernels", "4"]
    a, b = (read_log(script("train-bnn.py").main(argv)) for _ in range(2))
    assert [{k: v for k, v in row.items() if k != "sec"} for row in a] == [
        {k: v for k, v in row.items() if k != "sec"} for row in b
    ]


@pytest.mark.parametrize("name", ["train-net.py", "train-bnn.py", "train-vae.py"])
def test_precision(script, sandbox, vae_folder, monkeypatch, capsys, name):
    """In bfloat16 the numbers are near those of float32, and not the same; without it in the device it is refused."""
    kernels = np.random.default_rng(0).standard_normal((300, 1, 5, 5)).astype(np.float32)
    np.save(sandbox / "x.npy", kernels)
    files = ["--train", str(sandbox / "x.npy"), "--test", str(sandbox / "x.npy")]
    argv = {
        "train-net.py": [*SMALL, "--l2", "0.01"],
        "train-bnn.py": [*SMALL, *lists(vae_folder, "vae"), "--ens", "3"],
        "train-vae.py": ["--kernel_dim", "5", "--num_epochs", "2", *files],
    }[name]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": False}, raising=False)
    full, half = (script(name).main([*argv, "--precision", p]).rows[-1] for p in ("fp32", "bf16"))
    column = {"train-net.py": "loss", "train-bnn.py": "train_loss", "train-vae.py": "train_elbo"}[name]
    assert half[column] == pytest.approx(full[column], rel=0.02) and half[column] != full[column]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    with pytest.raises(SystemExit):
        script(name).main([*argv, "--device", "cpu", "--precision", "bf16"])
    assert "--precision: found bf16, expected fp32" in capsys.readouterr().err


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_compile(script, sandbox):
    """The compiled step trains as the other: the same first loss, but for rounding."""
    plain, compiled = (
        script("train-net.py").main([*SMALL, "--epochs", "1", "--bs", "30", "--compile", c]) for c in ("0", "1")
    )
    for column in ("loss", "test_nll"):
        assert compiled.rows[-1][column] == pytest.approx(plain.rows[-1][column], rel=1e-4)


@pytest.mark.parametrize("name", ["train-net.py", "train-vae.py"])
def test_compile_without_a_compiler(script, sandbox, monkeypatch, capsys, name):
    def no_compiler(function):
        raise RuntimeError("no compiler\nand more lines")

    monkeypatch.setattr(torch, "compile", no_compiler)
    argv = SMALL if name == "train-net.py" else ["--kernel_dim", "5", "--data_dir", str(sandbox)]
    for part in ("train", "test"):
        np.save(sandbox / f"{part}.npy", np.ones((300, 1, 5, 5), np.float32))
    with pytest.raises(SystemExit):
        script(name).main([*argv, "--compile", "1"])
    err = capsys.readouterr().err
    assert "--compile: found 1, expected 0: torch.compile does not work here (no compiler)" in err
    assert not (sandbox / "logs").exists()
