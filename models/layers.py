"""The layers of the kernel VAEs: torch's layers, computed faster on a CPU for maps of a few pixels.

A transposed 3x3 convolution of a map of 3x3 pixels is a product of polynomials in two variables, so Toom and Cook's
algorithm (Winograd 1980; Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016) takes 25
products of channel matrices instead of 81. Along one axis, with V the Vandermonde matrix of five points and E that of
its first three columns, the full convolution of x and w (3 pixels each, 5 out) is

    V^-1 [(E x) * (E w)],

which evaluates both at the points, multiplies the values, and interpolates the product. Rounding grows eightfold, to
some 1e-6 in float32. The algorithm saves nothing for the transpose, a valid convolution of 5x5 pixels, where
direct convolutions run at twice the rate of products of matrices.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALL = 49  # pixels of a map, at most, for which the matrix of a convolution pays
POINTS = (0.0, 1.0, -1.0, 0.5)  # and infinity, where the leading coefficient is the value


def toom_cook_matrices() -> tuple[Tensor, Tensor]:
    """E and V^-1 for both axes, of shapes (25, 9) and (25, 25), in float64."""
    points = torch.tensor(POINTS, dtype=torch.float64)
    evaluate = {size: torch.linalg.vander(points, N=size) for size in (3, 5)}
    e, v = (torch.cat([m, torch.eye(size, dtype=m.dtype)[-1:]]) for size, m in evaluate.items())
    inverse = torch.linalg.inv(v)
    return torch.kron(e, e), torch.kron(inverse, inverse)


EVALUATE, INTERPOLATE = toom_cook_matrices()


def through_points(x: Tensor, weight: Tensor) -> Tensor:
    """The full convolution of 3x3 maps with 3x3 kernels by Toom-Cook, as products of channel matrices.

    Parameters
    ----------
    x : maps (n, channels in, 3, 3), channels last.
    weight : (3, 3, channels in, channels out).

    Returns
    -------
    Maps (n, channels out, 5, 5), channels last.
    """
    evaluate, interpolate = (t.to(x.dtype) for t in (EVALUATE, INTERPOLATE))
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    kernels = (evaluate @ weight.flatten(2).flatten(0, 1)).view(-1, *weight.shape[2:])
    # As batches, since `evaluate @ pixels` would copy the pixels into another layout.
    products = torch.bmm(torch.bmm(evaluate.expand(len(x), -1, -1), pixels).transpose(0, 1), kernels)
    out = torch.bmm(interpolate.expand(len(x), -1, -1), products.transpose(0, 1))
    return out.unflatten(1, (5, 5)).permute(0, 3, 1, 2)


class Conv2d(nn.Conv2d):
    """A convolution, computed as a product of matrices where that is two to three times as fast.

    That is so for kernels as large as the map, for 1x1 kernels with one output channel, and for small maps with one
    input channel, whose matrix is the convolution of the unit maps: it pays from twice as many maps as pixels on. So
    the rounding of a map depends on how many there are.
    """

    def forward(self, x: Tensor) -> Tensor:
        # Channels last, as the weights are stored, so that neither is copied.
        rows, weight = (t.permute(0, 2, 3, 1) for t in (x, self.weight))
        pixels = x.shape[2] * x.shape[3]
        if self.padding == (0, 0):
            if x.shape[2:] == self.kernel_size:
                return F.linear(rows.flatten(1), weight.flatten(1), self.bias)[:, :, None, None]
            if self.kernel_size == self.stride == (1, 1) and self.out_channels == 1:
                return F.linear(rows, weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        small = self.in_channels == 1 and pixels <= SMALL and self.bias is not None
        if small and x.device.type == "cpu" and len(x) > 2 * pixels:
            units = torch.eye(pixels, dtype=x.dtype).view(pixels, *x.shape[1:])
            matrix = self._conv_forward(units, self.weight, None).permute(0, 2, 3, 1)
            bias = self.bias.expand(matrix.shape[1:]).flatten()
            out = torch.addmm(bias, rows.flatten(1), matrix.flatten(1))
            return out.unflatten(1, matrix.shape[1:]).permute(0, 3, 1, 2)
        return super().forward(x)


class ConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution, computed as a product of matrices for one pixel and through points for 3x3 pixels."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] == (1, 1) and self.padding == (0, 0):
            weight = self.weight.permute(0, 2, 3, 1)
            pixels = (x.flatten(1) @ weight.flatten(1)).unflatten(1, weight.shape[1:]) + self.bias
            return pixels.permute(0, 3, 1, 2)
        # Only on a CPU, and only in full precision, because the rounding error grows.
        small = self.kernel_size == (3, 3) and self.padding == (0, 0) and x.shape[2:] == (3, 3)
        if small and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            return through_points(x, self.weight.permute(2, 3, 0, 1)) + self.bias[:, None, None]
        return super().forward(x)


class EluFunction(torch.autograd.Function):
    """elu(x) = max(x, exp(min(x, 0)) - 1), whose derivative is min(elu(x) + 1, 1).

    On a CPU torch's own ELU computes expm1 of one element at a time, some ten times as slowly as exp of a vector. The
    difference from expm1 is at most 1.2e-7 in float32, the rounding error of 1. The backward pass needs only the
    output, which the next layer keeps anyway. Each pass allocates one new tensor: new memory costs as much as
    arithmetic.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        out = x.clamp(max=0).exp_().sub_(1)
        torch.maximum(x, out, out=out)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        # alpha, scale and input scale are 1. The gradient uses the result, so it needs no exponential.
        return torch.ops.aten.elu_backward(gradient, 1, 1, 1, True, out)


class ELU(nn.Module):
    """The activation of every layer of the VAEs."""

    def forward(self, x: Tensor) -> Tensor:
        return EluFunction.apply(x)


def with_elu(*layers: nn.Module) -> nn.Sequential:
    """The layers with an ELU after each, so layer i has index 2 * i in the state dict."""
    return nn.Sequential(*(module for layer in layers for module in (layer, ELU())))
