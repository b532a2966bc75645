"""The arguments of the pipeline at every scale."""

import shlex

import pytest

from models.configs import MODELS
from sweeps.grid import make_trials, split_options
from sweeps.scales import SCALES, filled
from sweeps.trials import find_script


@pytest.mark.parametrize("scale", SCALES)
def test_the_commands_accept_the_scales(scale, script, sandbox):
    """All arguments at all scales are those of the commands, with kernel sizes that fit together."""
    spec = SCALES[scale]
    places = {"source": "not-mnist", **{f"vae{name}": "x" for name in spec.kernels}}
    for grid, shared in spec.nets.values():
        options = split_options(shlex.split(grid))[1]
        assert make_trials(find_script("train-net.py"), options, filled(shared, places))
    trials = {}
    for name, (nets, min_norm, vae, seeds) in spec.kernels.items():
        assert set(nets) <= set(spec.nets) and min_norm >= 0
        shared = ["--kernel_dim", name[0], "--data_dir", "x", *shlex.split(vae)]
        trials[name] = make_trials(find_script("train-vae.py"), split_options(shlex.split(seeds))[1], shared)
    for names, network in spec.rankings.values():
        args = script("train-net.py").parse(filled(network, places))
        assert MODELS[args.model].kernel_sizes == tuple(int(name[0]) for name in names)
        assert args.num_examples and args.classifier_lamb and len({len(trials[name]) for name in names}) == 1
    assert {name for nets, *_ in spec.kernels.values() for name in nets} == set(spec.nets)
    for grid, shared in spec.bnns.values():
        options = split_options(shlex.split(grid))[1]
        first, *others = make_trials(find_script("train-bnn.py"), options, filled(shared, places))
        assert len(others) >= 3
        args = script("train-bnn.py").parse(list(first.argv))
        assert set(spec.by.split()) <= set(vars(args))
