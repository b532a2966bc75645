"""The arguments of the pipeline at every scale."""

import shlex

import pytest

from sweeps.grid import make_trials, split_options
from sweeps.scales import SCALES
from sweeps.trials import find_script


@pytest.mark.parametrize("scale", SCALES)
def test_the_commands_accept_the_scales(scale, script, sandbox):
    """All arguments at all scales are those of the commands, with kernel sizes that fit together."""
    spec = SCALES[scale]
    for grid, shared in spec.nets.values():
        options = split_options(shlex.split(grid))[1]
        assert make_trials(find_script("train-net.py"), options, shlex.split(shared))
    for name, (nets, min_norm, vae) in spec.kernels.items():
        assert set(nets) <= set(spec.nets) and min_norm >= 0
        script("train-vae.py").parse(["--kernel_dim", name[0], "--data_dir", "x", *shlex.split(vae)])
    assert {name for nets, *_ in spec.kernels.values() for name in nets} == set(spec.nets)
    places = {f"vae{name}": "x" for name in spec.kernels}
    for grid, shared in spec.bnns.values():
        words = [word.format(**places) for word in shlex.split(shared)]
        trials = make_trials(find_script("train-bnn.py"), split_options(shlex.split(grid))[1], words)
        assert len(trials) >= 4
        args = script("train-bnn.py").parse(list(trials[0].argv))
        assert set(spec.by.split()) <= set(vars(args))
