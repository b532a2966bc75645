"""The layers of the kernel VAEs against torch's own."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from models.layers import ELU, Conv2d, ConvTranspose2d


def test_elu_is_torchs_in_value_and_gradient():
    x = torch.cat([torch.linspace(-90, 90, 20001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, -200.0])]).requires_grad_()
    ours, theirs = ELU()(x), F.elu(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1.2e-7)
    weights = torch.randn_like(x)
    found, expected = (torch.autograd.grad(y, x, weights)[0] for y in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1.2e-7 * weights.abs().max().item())
    assert torch.autograd.gradcheck(ELU(), torch.randn(50, dtype=torch.double, requires_grad=True))


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-14), (torch.float32, 3e-6)])
@pytest.mark.parametrize(
    "cls, arguments, side, options",
    [
        (Conv2d, (8, 16, 3), 5, {}),
        (Conv2d, (8, 16, 3), 3, {}),
        (Conv2d, (8, 1, 1), 5, {}),
        (Conv2d, (8, 1, 1), 5, {"stride": 2}),
        (Conv2d, (8, 1, 1), 5, {"padding": 1}),
        (Conv2d, (1, 16, 3), 7, {}),
        (Conv2d, (1, 16, 3), 5, {"padding": 1}),
        (Conv2d, (1, 16, 3), 5, {"padding": 1, "stride": 2}),
        (Conv2d, (1, 16, 3), 9, {}),
        (ConvTranspose2d, (8, 16, 3), 3, {}),
        (ConvTranspose2d, (8, 16, 3), 1, {}),
    ],
)
@pytest.mark.parametrize("n", [7, 200])
def test_convs_of_small_maps_are_torchs(cls, arguments, side, options, n, dtype, error):
    """Value and every gradient of the layers, by whichever algorithm, are those of torch's functions in float64."""
    torch.manual_seed(0)
    layer = cls(*arguments, **options).to(dtype).to(memory_format=torch.channels_last)
    x = torch.randn(n, arguments[0], side, side, dtype=dtype).requires_grad_()
    function = partial(F.conv_transpose2d if layer.transposed else F.conv2d, **options)
    leaves = [x, layer.weight, layer.bias]
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    found, expected = layer(x), function(*doubles)
    assert found.shape == expected.shape
    upstream = torch.randn_like(expected) + (n == 200)  # sums over many maps would cancel
    gradients = torch.autograd.grad(found, leaves, upstream.to(dtype))
    for a, b in zip((found, *gradients), (expected, *torch.autograd.grad(expected, doubles, upstream)), strict=True):
        assert (a - b).norm() < error * b.norm()
