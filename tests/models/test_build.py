"""The tables of names build what they say, and initializations set the weights that they promise."""

import inspect
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import utils
from models.build import build_network, build_vae, init_network, set_priors
from models.configs import DATA_SETS, INITS, MODELS, PRIORS, SOURCES, VAES, imported
from models.network import ConvNet

CHOICES = {
    **{f"prior {name}": (row, row.options) for name, row in PRIORS.items()},
    **{f"init {name}": (row, {"n"}) for name, row in INITS.items() if row.builds},
}


@pytest.mark.parametrize("row, arguments", CHOICES.values(), ids=CHOICES)
def test_a_row_gives_every_argument_of_what_it_builds(row, arguments):
    assert set(row.needs) <= SOURCES.keys()
    parameters = inspect.signature(imported(row.builds)).parameters.values()
    named = {p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}
    assert named == {*row.needs, *arguments}


def test_priors_take_values_of_options(script):
    """Every value that a row of PRIORS names is an option of train-bnn.py, but for what follows from the network."""
    args = script("train-bnn.py").parse([])
    named = {option for row in PRIORS.values() for option in row.options.values()}
    assert named - vars(args).keys() == {"truncated"}


@pytest.mark.parametrize("model", MODELS)
def test_every_network_is_built_by_its_row(model):
    cls = imported(MODELS[model].builds)
    convs = len(MODELS[model].kernel_sizes)
    assert issubclass(cls, ConvNet) and type(build_network(model, "vanilla", [2] * convs, 0.02)) is cls


@pytest.mark.parametrize("k", VAES)
def test_every_vae_is_of_its_kernel_size(k):
    vae = build_vae(k, 2, 3, 0.5)
    assert type(vae) is imported(VAES[k]) and vae.kernel_dim == k
    assert (vae.decode(torch.zeros(1, 2, 1, 1))[1] == 0.5).all()


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_is_loaded_by_a_function_of_its_folder(name):
    inspect.signature(imported(DATA_SETS[name])).bind(Path())  # a TypeError if it needs more


def test_a_prior_that_cannot_be_built_is_named_with_its_layer():
    sources = [{"filters": torch.randn(100, 1, k, k)} for k in (7, 5)]
    sources[1]["filters"] = torch.randn(20, 1, 5, 5)
    net = build_network("fconv", "bayes", [2, 3])
    message = r"prior 'gauss' of conv 2: 20 kernels do not spread in all 25 directions"
    with pytest.raises(ValueError, match=message):
        set_priors(net, ["gauss", "gauss"], sources, {})


@pytest.mark.parametrize("kind", ["vae", "vae-qmc", "filters", "recon", "flow"])
def test_initializations_from_sources(kind, sandbox, vae_folder, flow_folder, script):
    """The weights of conv1 are those that the sources on the command line give, for the same random numbers."""
    kernels = [torch.full((40, 1, k, k), float(k)) for k in (7, 5)]
    for k, array in zip((7, 5), kernels, strict=True):
        np.save(sandbox / f"{k}.npy", array.numpy())
    args = script("train-net.py").parse(
        shlex.split(
            f"--init_list {kind} {kind} --vae_list {vae_folder(7)} {vae_folder(5)} --hid_dim 3 4 "
            f"--filters_list {sandbox}/7.npy {sandbox}/5.npy --flow_list {flow_folder(7)} {flow_folder(5)}"
        )
    )
    net = build_network("fconv", "vanilla", args.hid_dim)
    sources = utils.load_sources(args, torch.device("cpu"))
    torch.manual_seed(0)
    init_network(net, args.init_list, sources)
    if kind == "filters":
        assert (net.features.conv1.weight == 7).all() and (net.features.conv2.weight == 5).all()
    else:
        torch.manual_seed(0)
        for layer in (net.features.conv1, net.features.conv2, net.classifier):
            torch.nn.init.xavier_normal_(torch.empty_like(layer.weight))  # draws depend on the memory layout
        with torch.no_grad():
            vae, flow = sources[0].get("vae"), sources[0].get("flow")
            expected = {
                "vae": lambda: vae.decode(torch.randn(3, 2, 1, 1))[0],
                "vae-qmc": lambda: vae.decode(vae._even_codes(3))[0],
                "recon": lambda: vae.decode(vae.encode(kernels[0][:3])[0])[0],
                "flow": lambda: flow.sample(3),
            }[kind]()
        torch.testing.assert_close(net.features.conv1.weight, expected.view(3, 1, 7, 7))
