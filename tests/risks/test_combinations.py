"""Every network configuration with every prior and with every initialization: what makes sense trains, else refused."""

import numpy as np
import pytest
import torch

import utils
from models.bayes import set_mode
from models.build import build_network
from models.configs import INITS, MODELS, PRIORS
from runs.checkpoint import load_checked, load_state
from tests.conftest import network_argv

BAYESIAN = [(m, c) for m, row in MODELS.items() for c in row.net_cfgs if any(row.config(c).bayesian)]
PLAIN = [(m, c) for m, row in MODELS.items() for c in row.net_cfgs if not any(row.config(c).bayesian)]
# Each pair of a configuration, a prior and an initialization occurs; the triples would be seven times as many runs.
TRIPLES = [
    (*config, prior, list(INITS)[(i + j) % len(INITS)])
    for i, config in enumerate(BAYESIAN)
    for j, prior in enumerate([*PRIORS, *list(PRIORS)[: max(0, len(INITS) - len(PRIORS))]])
]


def network(args, **options):
    """An untrained network of the command's arguments."""
    return build_network(args.model, args.net_cfg, args.hid_dim, args.model_size, args.n_classes, **options)


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


def test_every_pair_occurs():
    columns = ([(m, c) for m, c, *_ in TRIPLES], [t[2] for t in TRIPLES], [t[3] for t in TRIPLES])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        pairs = set(zip(columns[a], columns[b], strict=True))
        assert len(pairs) == len(set(columns[a])) * len(set(columns[b]))
    assert [set(c) for c in columns] == [set(BAYESIAN), set(PRIORS), set(INITS)]


@pytest.mark.parametrize("model, net_cfg, prior, init", TRIPLES)
def test_a_bayesian_network_trains_saves_and_loads(small_inputs, script, model, net_cfg, prior, init):
    module = script("train-bnn.py")
    argv = [*network_argv(small_inputs, model, net_cfg, init), "--prior", prior, "--ens", "2", "--kl_kernels", "10"]
    run = module.main(argv)
    assert np.isfinite([value for row in run.rows for value in row.values()]).all()
    assert (run.rows[-1]["KL"] == 0) == (prior == "no")
    assert finite_gradients(run.root)
    args = module.parse(argv)
    nets = [network(args) for _ in range(2)]
    for net in nets:
        load_checked(net, load_state(run.root / "model.torch"), "model")
    found = [logits(net, args, sample) for net in nets for sample in (False, True)]
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=0)
    torch.testing.assert_close(found[1], found[3], rtol=0, atol=0)
    assert torch.isfinite(torch.stack(found)).all() and not torch.equal(found[0], found[1])
    accuracy = (found[0].argmax(1) == utils.load_data(args.data)[1].labels).float().mean().item()
    assert run.rows[-1]["det_test_acc"] == pytest.approx(accuracy)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("model, net_cfg", PLAIN)
def test_a_deterministic_network_trains_saves_and_loads(small_inputs, script, model, net_cfg, init):
    module = script("train-net.py")
    argv = [*network_argv(small_inputs, model, net_cfg, init), "--l2", "0.001", "--dwp_reg", "0.0001", "--aug", "1"]
    if model == "fconv" and net_cfg == "vanilla-do":
        argv += ["--do", "0.1", "0.2"]
    run = module.main(argv)
    assert np.isfinite([value for row in run.rows for value in row.values()]).all()
    assert run.rows[-1]["dwp_reg"] != 0 and finite_gradients(run.root)
    args = module.parse(argv)
    net = network(args, do=args.do)
    load_checked(net, load_state(run.root / "model.torch"), "model")
    accuracy = (logits(net, args).argmax(1) == utils.load_data(args.data)[1].labels).float().mean().item()
    assert run.rows[-1]["test_acc"] == pytest.approx(accuracy)


def refusals():
    """(script, model, net_cfg, further options, words of the one line)."""
    for model, net_cfg in BAYESIAN:
        yield "train-net.py", model, net_cfg, [], (repr(net_cfg), "vanilla")
        bayesian = MODELS[model].config(net_cfg).bayesian
        for prior in PRIORS:
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
def test_what_makes_no_sense_is_refused(small_inputs, script, capsys, tmp_path, name, model, net_cfg, argv, words):
    with pytest.raises(SystemExit) as stop:
        script(name).main([*network_argv(small_inputs, model, net_cfg, "xavier"), *argv])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and len(err.splitlines()) == 1 and all(word in err for word in words), err
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("prior", [name for name, prior in PRIORS.items() if prior.needs])
def test_a_prior_of_another_kernel_size_is_refused(small_inputs, script, capsys, tmp_path, prior):
    argv = network_argv(small_inputs, "fconv", "bayes", "xavier")
    option = f"--{PRIORS[prior].needs[0]}_list"
    i = argv.index(option)
    argv[i + 1], argv[i + 2] = argv[i + 2], argv[i + 1]
    with pytest.raises(SystemExit):
        script("train-bnn.py").main([*argv, "--prior", prior])
    err = capsys.readouterr().err
    assert option in err and "5" in err and "7" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "logs").exists()


def test_a_gaussian_needs_kernels_in_every_direction(small_inputs, script, capsys, tmp_path):
    np.save(tmp_path / "few.npy", np.random.default_rng(0).standard_normal((20, 1, 7, 7)).astype(np.float32))
    argv = network_argv(small_inputs, "fconv", "bayes", "xavier")
    argv[argv.index("--filters_list") + 1] = str(tmp_path / "few.npy")
    with pytest.raises(SystemExit):
        script("train-bnn.py").main([*argv, "--prior", "gauss"])
    assert "'gauss' of conv 1: 20 kernels do not spread in all 49 directions" in capsys.readouterr().err
