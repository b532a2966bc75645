"""Every network configuration with every prior and initialization: what makes sense trains, the rest is refused."""

import hashlib
import pickle
from argparse import Namespace

import numpy as np
import pytest
import scipy.io
import torch
import yaml
from torchvision import datasets

import runs
import utils
from data.prepare_mnist import idx_bytes
from models.bayes import set_mode
from models.configs import INIT_NEEDS, MODELS, PRIOR_NEEDS, VAE_KERNEL_SIZES
from models.flow import KernelFlow
from models.priors import PRIORS
from models.vae import VAES

SMALLER = ["--model_size", "0.015"]
SIZES = {
    "fconv": ["--hid_dim", "2", "3"],
    "fconv3x3": ["--hid_dim", "2", "3", "2"],
    "cifarnet": SMALLER,
    "cifarnetnew": SMALLER,
}
BAYESIAN = [(m, c) for m, spec in MODELS.items() for c in spec.net_cfgs if any(spec.config(c).bayesian)]
PLAIN = [(m, c) for m, spec in MODELS.items() for c in spec.net_cfgs if not any(spec.config(c).bayesian)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data sets of a few images in both shapes, and per kernel size a VAE, a flow and kernels."""
    root = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    raw = root / "not-mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 20), ("t10k", 10)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(rng.integers(0, 256, (n, 28, 28))))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(n) % 10))
    (root / "svhn").mkdir()
    for part, n in (("train", 20), ("test", 10)):
        images = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        scipy.io.savemat(root / "svhn" / f"{part}_32x32.mat", {"X": images, "y": 1 + np.arange(n)[:, None] % 10})
    torch.manual_seed(0)
    for k in VAE_KERNEL_SIZES:
        folder = root / f"vae{k}"
        folder.mkdir()
        params = {"z_dim": 2, "hidden_dim": 2, "kernel_dim": k, "var": "train"}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        torch.save(VAES[k](2, 2).state_dict(), folder / "vae_params.torch")
        folder = root / f"flow{k}"
        folder.mkdir()
        params = {"kind": "flow", "hidden_dim": 4, "kernel_dim": k, "transforms": 1}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        torch.save(KernelFlow(k, 4, 1).state_dict(), folder / "flow_params.torch")
        np.save(root / f"filters{k}.npy", 0.1 * rng.standard_normal((60, 1, k, k)).astype(np.float32))
    for model, net_cfg in PLAIN:
        hid_dim = [2, 3, 2][: len(MODELS[model].kernel_sizes)]
        args = Namespace(net_cfg=net_cfg, hid_dim=hid_dim, model_size=0.015, n_classes=10)
        torch.save(utils.NETWORKS[model](args).state_dict(), root / f"{model}-{net_cfg}.torch")
    return root


@pytest.fixture
def environment(place, tmp_path, monkeypatch):
    """The place as DATA_ROOT, runs in an empty folder, and the small SVHN's checksums in place of the real ones."""
    monkeypatch.setenv("DATA_ROOT", str(place))
    monkeypatch.setenv("DWP_PATH", str(tmp_path / "logs"))
    splits = {}
    for split in ("train", "test"):
        name = f"{split}_32x32.mat"
        splits[split] = ["https://nowhere.invalid", name, hashlib.md5((place / "svhn" / name).read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)
    return place


def command_line(place, model, net_cfg, init, epochs=2):
    spec = MODELS[model]
    lists = {}
    for name in ("vae", "flow", "filters"):
        suffix = ".npy" if name == "filters" else ""
        lists[f"{name}_list"] = [str(place / f"{name}{k}{suffix}") for k in spec.kernel_sizes]
    argv = [
        "--data",
        "not-mnist" if MODELS[model].image_shape[0] == 1 else "svhn",
        "--model",
        model,
        "--net_cfg",
        net_cfg,
    ]
    argv += [*SIZES[model], "--epochs", str(epochs), "--bs", "10", "--device", "cpu"]
    argv += ["--init_list", *([init] if init == "pretrained" else [init] * len(spec.kernel_sizes))]
    if init == "pretrained":
        vanilla = (
            "vanilla-nofc" if net_cfg.endswith("-nofc") else "vanilla-do" if net_cfg.endswith("-do") else "vanilla"
        )
        argv += ["--pretrained", str(place / f"{model}-{vanilla}.torch")]
    return argv + [word for name, paths in lists.items() for word in (f"--{name}", *paths)]


def finite_gradients(run_root):
    """Adam's second moments are the gradients' squares: none is missing, all are finite."""
    state = torch.load(run_root / "opt.torch", weights_only=True)["state"]
    return all(torch.isfinite(moments["exp_avg_sq"]).all() for moments in state.values())


def logits(net, args, sample=False):
    _, test = utils.load_data(args.data)
    set_mode(net, "stoch" if sample else "det")
    torch.manual_seed(1)
    with torch.no_grad():
        return net.eval()(test.images.float() / 255)


@pytest.mark.parametrize("init", INIT_NEEDS)
@pytest.mark.parametrize("prior", PRIOR_NEEDS)
@pytest.mark.parametrize("model, net_cfg", BAYESIAN)
def test_a_bayesian_network_trains_saves_and_loads(environment, script, model, net_cfg, prior, init):
    module = script("train-bnn.py")
    argv = [*command_line(environment, model, net_cfg, init), "--prior", prior, "--ens", "2", "--kl_kernels", "10"]
    run = module.main(argv)
    assert np.isfinite([value for row in run.rows for value in row.values()]).all()
    assert (run.rows[-1]["KL"] == 0) == (prior == "no")
    assert finite_gradients(run.root)
    args = module.parse(argv)
    nets = [utils.NETWORKS[model](args) for _ in range(2)]
    for net in nets:
        utils.fill(net, utils.load_state(run.root / "model.torch", "model"), "model")
    found = [logits(net, args, sample) for net in nets for sample in (False, True)]
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)
    torch.testing.assert_close(found[1], found[3], rtol=0, atol=0)
    assert torch.isfinite(torch.stack(found)).all() and not torch.equal(found[0], found[1])
    accuracy = (found[0].argmax(1) == utils.load_data(args.data)[1].labels).float().mean().item()
    assert run.rows[-1]["det_test_acc"] == pytest.approx(accuracy)


@pytest.mark.parametrize("init", INIT_NEEDS)
@pytest.mark.parametrize("model, net_cfg", PLAIN)
def test_a_deterministic_network_trains_saves_and_loads(environment, script, model, net_cfg, init):
    module = script("train-net.py")
    argv = [*command_line(environment, model, net_cfg, init), "--l2", "0.001", "--dwp_reg", "0.0001", "--aug", "1"]
    if model == "fconv" and net_cfg == "vanilla-do":
        argv += ["--do", "0.1", "0.2"]
    run = module.main(argv)
    assert np.isfinite([value for row in run.rows for value in row.values()]).all()
    assert run.rows[-1]["dwp_reg"] != 0 and finite_gradients(run.root)
    args = module.parse(argv)
    net = utils.NETWORKS[model](args, do=args.do)
    utils.fill(net, utils.load_state(run.root / "model.torch", "model"), "model")
    accuracy = (logits(net, args).argmax(1) == utils.load_data(args.data)[1].labels).float().mean().item()
    assert run.rows[-1]["test_acc"] == pytest.approx(accuracy)


def refusals():
    """(script, model, net_cfg, further options, words of the one line)."""
    for model, net_cfg in BAYESIAN:
        yield "train-net.py", model, net_cfg, [], (repr(net_cfg), "vanilla")
        bayesian = MODELS[model].config(net_cfg).bayesian
        for prior in PRIOR_NEEDS:
            if prior != "no" and not all(bayesian):
                yield "train-bnn.py", model, net_cfg, ["--prior_list", *[prior] * len(bayesian)], (repr(prior), net_cfg)
        yield "train-bnn.py", model, net_cfg, ["--prior_list", "sn"], ("--prior_list: found 1", str(len(bayesian)))
    for model, net_cfg in PLAIN:
        yield "train-bnn.py", model, net_cfg, [], (repr(net_cfg), "bayes")
    for model in ("cifarnet", "cifarnetnew"):
        yield "train-net.py", model, "vanilla", ["--hid_dim", "3", "3"], ("--hid_dim", "--model_size", model)
        yield "train-net.py", model, "vanilla", ["--model_size", "0.001"], ("--model_size",)
        yield "train-net.py", model, "vanilla", ["--do", "0.1"], ("--do", f"{model} vanilla")
        yield "train-net.py", model, "vanilla", ["--data", "not-mnist"], ("(1, 28, 28)", "(3, 32, 32)", model)
    yield "train-net.py", "fconv", "vanilla", ["--model_size", "2"], ("--model_size", "--hid_dim", "fconv")
    yield "train-net.py", "fconv", "vanilla", ["--data", "svhn"], ("(3, 32, 32)", "(1, 28, 28)", "fconv")
    yield "train-bnn.py", "fconv", "bayes", ["--reverse", "train"], ("--reverse", "'vae'")
    yield "train-bnn.py", "fconv", "bayes", ["--bound", "iwae"], ("--bound", "'vae'")


@pytest.mark.parametrize("name, model, net_cfg, argv, words", list(refusals()))
def test_what_makes_no_sense_is_refused(environment, script, capsys, tmp_path, name, model, net_cfg, argv, words):
    with pytest.raises(SystemExit) as stop:
        script(name).main([*command_line(environment, model, net_cfg, "xavier"), *argv])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and all(word in err for word in words), err
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("prior", [prior for prior, needs in PRIOR_NEEDS.items() if needs])
def test_a_prior_of_another_kernel_size_is_refused(environment, script, capsys, tmp_path, prior):
    argv = command_line(environment, "fconv", "bayes", "xavier")
    option = f"--{PRIOR_NEEDS[prior][0]}"
    i = argv.index(option)
    argv[i + 1], argv[i + 2] = argv[i + 2], argv[i + 1]
    with pytest.raises(SystemExit):
        script("train-bnn.py").main([*argv, "--prior", prior])
    err = capsys.readouterr().err
    assert option in err and "5" in err and "7" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "logs").exists()


def test_a_gaussian_needs_kernels_in_every_direction(environment, script, capsys, tmp_path):
    np.save(tmp_path / "few.npy", np.random.default_rng(0).standard_normal((20, 1, 7, 7)).astype(np.float32))
    argv = command_line(environment, "fconv", "bayes", "xavier")
    argv[argv.index("--filters_list") + 1] = str(tmp_path / "few.npy")
    with pytest.raises(SystemExit):
        script("train-bnn.py").main([*argv, "--prior", "gauss"])
    assert "'gauss' of conv 1: 20 kernels do not spread in all 49 directions" in capsys.readouterr().err


def test_names_on_the_command_line_are_those_of_the_registries():
    assert set(PRIORS) == set(PRIOR_NEEDS) and sorted(VAES) == list(VAE_KERNEL_SIZES)
    assert set(utils.NETWORKS) == set(MODELS)


PUBLISHED_NAMES = {
    ("fconv", "bayes"): ["features.conv1.mean.weight", "features.conv2.var.weight", "classifier.weight"],
    ("fconv", "bayes-mtrunca"): ["features.conv1.w_alpha", "features.conv2.mean.bias"],
    ("cifarnet", "bayes1100"): ["features.conv2.var.weight", "features.conv3.weight", "features.bn4.running_var"],
    ("cifarnet", "vanilla"): ["features.bn1.weight", "classifier.fc1.weight", "classifier.bn1.bias"],
    ("cifarnetnew", "bayes100"): ["features.conv1.var.weight", "features.conv3.bias", "classifier.linear.weight"],
    ("cifarnetnew", "vanilla-nofc"): ["features.conv1.weight", "classifier.linear.bias"],
}


@pytest.mark.parametrize("model, net_cfg", PUBLISHED_NAMES)
def test_parameter_names_and_shapes(script, model, net_cfg):
    name = "train-net.py" if net_cfg.startswith("vanilla") else "train-bnn.py"
    args = script(name).parse(["--model", model, "--net_cfg", net_cfg])
    state = utils.NETWORKS[model](args).state_dict()
    assert set(PUBLISHED_NAMES[model, net_cfg]) <= state.keys()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if model == "cifarnet":
        assert shapes["features.conv4.weight"] == (512, 256, 5, 5) and shapes["classifier.fc1.weight"] == (512, 512)
    if net_cfg == "vanilla-nofc":
        assert shapes["classifier.linear.weight"] == (10, 6400) and not any("fc1" in name for name in shapes)


def test_dropout_of_cifarnetnew(script):
    args = script("train-net.py").parse(["--model", "cifarnetnew", "--net_cfg", "vanilla-do", "--model_size", "0.1"])
    names = [
        (name, getattr(m, "p", None)) for name, m in utils.NETWORKS["cifarnetnew"](args).classifier.named_children()
    ]
    assert names == [("do1", 0.5), ("fc1", None), ("relu1", None), ("do2", 0.2), ("linear", None)]


# --- options of the commands ----------------------------------------------------------------------------------------


def test_a_frozen_feature_extractor(environment, script, tmp_path):
    """`--rfe 1` trains the classifier and the batch norms; what comes from a checkpoint stays in the convs."""
    module = script("train-net.py")
    first = module.main(command_line(environment, "cifarnet", "vanilla", "xavier", 1))
    argv = [*command_line(environment, "cifarnet", "vanilla", "pretrained"), "--rfe", "1"]
    argv[argv.index("--pretrained") + 1] = str(first.root / "model.torch")
    second = module.main(argv)
    a, b = (torch.load(run.root / "model.torch", weights_only=True) for run in (first, second))
    changed = {name for name in a if not torch.equal(a[name], b[name])}
    assert not any(".conv" in name for name in changed)
    assert {"features.bn1.weight", "features.bn4.bias", "classifier.fc1.weight", "classifier.linear.bias"} <= changed


def test_fastconv_counts_steps(environment, script):
    argv = command_line(environment, "fconv", "vanilla", "xavier", 5)
    run = script("train-net.py").main([*argv, "--fastconv", "1", "--eval_freq", "4"])
    assert [row["t"] for row in run.rows] == [1, 4, 8, 10]  # 5 epochs of 2 steps
    run = script("train-net.py").main([*argv, "--eval_freq", "4"])
    assert [row["t"] for row in run.rows] == [1, 4, 5]


def test_milestones_and_kl_weight(environment, script):
    argv = [*command_line(environment, "fconv", "bayes", "xavier", 4), "--milestones", "1", "2", "--gamma", "0.1"]
    run = script("train-bnn.py").main([*argv, "--kl_weight", "0.25", "--ens", "2"])
    assert [row["lr"] for row in run.rows] == pytest.approx([1e-3, 1e-4, 1e-5, 1e-5])
    row = run.rows[-1]
    assert row["train_loss"] == pytest.approx(20 * row["train_nll"] + 0.25 * row["KL"])


def test_dwp_reg_is_added_to_the_loss(environment, script):
    argv = [*command_line(environment, "fconv", "vanilla", "vae"), "--lr", "1e-12", "--bs", "20", "--dwp_samples", "50"]
    row = script("train-net.py").main([*argv, "--dwp_reg", "0.01", "--l2", "0.1"]).rows[-1]
    rest = row["loss"] - row["train_nll"] - 0.1 * row["l2_norm"]
    assert rest == pytest.approx(0.01 * row["dwp_reg"], rel=0.02)


def test_a_trained_reverse_model_is_saved_and_resumed(environment, script):
    argv = [*command_line(environment, "fconv", "bayes", "vae"), "--prior", "vae", "--reverse", "train", "--ens", "2"]
    before = (environment / "vae7" / "vae_params.torch").read_bytes()
    first = script("train-bnn.py").main([*argv, "--bound", "iwae", "--iwae_samples", "2", "--classifier_prior", "sn"])
    assert (environment / "vae7" / "vae_params.torch").read_bytes() == before
    trained = torch.load(first.root / "reverse.torch", weights_only=True)
    start = utils.load_vae(environment / "vae7").encoder.state_dict()
    assert all(not torch.equal(trained[f"1.{name}"], value) for name, value in start.items())
    assert {name.split(".")[0] for name in trained} == {"1", "2"}
    model = torch.load(first.root / "model.torch", weights_only=True)
    assert {"classifier.mean.weight", "classifier.var.weight"} <= model.keys()
    again = script("train-bnn.py").main(
        [*argv, "--classifier_prior", "sn", "--lr", "1e-12", "--resume", str(first.root)]
    )
    torch.testing.assert_close(torch.load(again.root / "reverse.torch", weights_only=True), trained)


@pytest.mark.parametrize("k", VAE_KERNEL_SIZES)
def test_train_a_flow(script, environment, tmp_path, k, capsys):
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
    with pytest.raises(runs.UserError, match="found a flow, expected a vae"):
        utils.load_vae(run.root)
    with pytest.raises(SystemExit):
        script("train-vae.py").main([*argv, "--z_dim", "3"])
    assert "--z_dim: found 3 with --kind flow" in capsys.readouterr().err


# --- colour data sets -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """CIFAR-10 and CIFAR-100 of 10 images per batch in their true format, with test checksums."""
    rng = np.random.default_rng(0)

    def batch(path, key, labels):
        data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        content = pickle.dumps({"data": data, key: labels})
        path.write_bytes(content)
        return [path.name, hashlib.md5(content).hexdigest()]

    for cls, key, meta_key, meta in (
        (datasets.CIFAR10, "labels", "label_names", "batches.meta"),
        (datasets.CIFAR100, "fine_labels", "fine_label_names", "meta"),
    ):
        folder = tmp_path / cls.base_folder
        folder.mkdir()
        n_train = 5 if cls is datasets.CIFAR10 else 1
        names = [name for name, _ in datasets.CIFAR10.train_list] if n_train == 5 else ["train"]
        classes = 10 if n_train == 5 else 100
        labels = [[int(label) for label in rng.permutation(classes)[:10]] for _ in range(n_train + 1)]
        test_name = "test_batch" if n_train == 5 else "test"
        train = [batch(folder / name, key, part) for name, part in zip(names, labels, strict=False)]
        monkeypatch.setattr(cls, "train_list", train)
        monkeypatch.setattr(cls, "test_list", [batch(folder / test_name, key, labels[-1])])
        content = pickle.dumps({meta_key: [str(i) for i in range(classes)]})
        (folder / meta).write_bytes(content)
        monkeypatch.setattr(cls, "meta", {"filename": meta, "key": meta_key, "md5": hashlib.md5(content).hexdigest()})
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    return tmp_path


def test_cifar(small_cifar):
    train, test = utils.load_data("cifar")
    assert train.images.shape == (50, 3, 32, 32) and test.images.shape == (10, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    with open(small_cifar / "cifar-10-batches-py" / "test_batch", "rb") as file:
        raw = pickle.load(file)
    assert test.images.flatten(1).tolist() == raw["data"].tolist() and test.labels.tolist() == raw["labels"]
    halves = [utils.load_data(name)[0] for name in ("cifar5", "cifar5-rest")]
    assert [sorted(half.labels.unique().tolist()) for half in halves] == [[0, 1, 2, 3, 4]] * 2
    assert torch.equal(halves[0].images, train.images[train.labels < 5])
    assert torch.equal(halves[1].labels, train.labels[train.labels >= 5] - 5)
    train, _ = utils.load_data("cifar100")
    assert len(train.labels) == 10 and train.labels.max() > 9


def test_svhn(environment):
    train, test = utils.load_data("svhn")
    raw = scipy.io.loadmat(environment / "svhn" / "test_32x32.mat")
    assert test.images.permute(2, 3, 1, 0).tolist() == raw["X"].tolist()
    assert test.labels.tolist() == (raw["y"][:, 0] % 10).tolist() and len(train.labels) == 20


@pytest.mark.parametrize("name, file", [("cifar", "cifar-10-python.tar.gz"), ("svhn", "train_32x32.mat")])
def test_a_data_set_that_cannot_be_had(tmp_path, monkeypatch, script, capsys, name, file):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.setattr(datasets.CIFAR10, "url", "https://nowhere.invalid/cifar-10-python.tar.gz")
    splits = {split: ["https://nowhere.invalid/x", f"{split}_32x32.mat", "0" * 32] for split in ("train", "test")}
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)
    with pytest.raises(SystemExit):
        script("train-net.py").main(["--data", name, "--model", "cifarnet"])
    err = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(err) == 1 and f"--data {name}" in err[0] and file in err[0] and str(tmp_path) in err[0]


def test_augmented_images_are_crops_and_flips():
    torch.manual_seed(0)
    images = torch.rand(200, 3, 32, 32)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    out = utils.augment(images).numpy()
    seen = set()
    for image, wide in zip(out, padded, strict=True):
        crops = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (1, -1)
            if np.array_equal(image, wide[:, top : top + 32, left : left + 32][:, :, ::flip])
        ]
        assert len(crops) == 1
        seen.update(crops)
    assert {flip for *_, flip in seen} == {1, -1} and {top for top, *_ in seen} == set(range(9))


def test_cifarnetnew_with_deep_weight_priors(environment, script):
    argv = [*command_line(environment, "cifarnetnew", "bayes111", "vae"), "--model_size", "0.125", "--prior", "vae"]
    run = script("train-bnn.py").main([*argv, "--kl_kernels", "64", "--epochs", "8", "--lr", "0.01", "--ens", "2"])
    assert run.rows[-1]["train_loss"] < run.rows[0]["train_loss"]
    state = torch.load(run.root / "model.torch", weights_only=True)
    assert state["features.conv1.mean.weight"].shape == (16, 3, 7, 7)
