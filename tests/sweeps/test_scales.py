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
    places = spec.places("not-mnist", 27_126) | {f"vae{name}": "x" for name in spec.vaes}
    for name, file, grid, words in spec.stages(places):
        first, *others = make_trials(find_script(file), split_options(shlex.split(grid))[1], words)
        args = script(file).parse(list(first.argv))
        if "{epochs}" in getattr(spec.nets.get(name.removeprefix("nets-")), "shared", ""):
            assert 18_000 <= args.epochs * -(-27_126 // args.bs) < 19_000
            few = filled(spec.nets[name.removeprefix("nets-")].shared, spec.places("x.npz", 500))
            few_args = script(file).parse([*few, "--seed", "1"])
            assert 18_000 <= few_args.epochs * -(-500 // few_args.bs) < 18_100
        if name.startswith("rank-"):
            assert args.num_examples and args.classifier_lamb
        elif name.startswith("bnns-"):
            assert len(others) >= 3 and set(spec.by.split()) <= set(vars(args))
    for nets, min_norm in spec.kernels.values():
        assert nets and set(nets) <= set(spec.nets) and min_norm >= 0
    trials = {}
    for name, (kernels, shared, seeds) in spec.vaes.items():
        assert kernels in spec.kernels and kernels[:3] == name[:3]
        words = ["--kernel_dim", name[0], "--data_dir", "x", *shlex.split(shared)]
        trials[name] = make_trials(find_script("train-vae.py"), split_options(shlex.split(seeds))[1], words)
    for names, network in spec.rankings.values():
        args = script("train-net.py").parse(filled(network, places))
        assert MODELS[args.model].kernel_sizes == tuple(int(name[0]) for name in names)
        assert len({len(trials[name]) for name in names}) == 1
    assert {name for nets, _ in spec.kernels.values() for name in nets} == set(spec.nets)
    assert {kernels for kernels, *_ in spec.vaes.values()} == set(spec.kernels)
