"""Random changes of a batch of images, each image by itself, with draws on the images' device.

The transforms of torchvision draw once for a batch, so images would have to be changed one by one.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CROP_PADDING = 4  # pixels on each side
DEGREES, SHIFT, SCALE = 10.0, 0.1, 0.1  # the largest rotation, shift as a share of the side, and change of the scale


def crop_and_flip(images: Tensor) -> Tensor:
    """Each image (n, c, h, w) padded by its reflection, cropped to its size at random, and flipped half of the time."""
    n, _, h, w = images.shape
    padded = F.pad(images, (CROP_PADDING,) * 4, mode="reflect")
    top, left = torch.randint(2 * CROP_PADDING + 1, (2, n, 1), device=images.device)
    flip = torch.rand(n, 1, device=images.device) < 0.5
    rows = top + torch.arange(h, device=images.device)
    columns = left + torch.arange(w, device=images.device)
    columns = torch.where(flip, columns.flip(1), columns)
    image = torch.arange(n, device=images.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def affine(images: Tensor) -> Tensor:
    """Each image (n, c, h, w) rotated, shifted and scaled about its middle at random, bilinearly; what enters is 0."""
    n = len(images)
    angle, scale, x, y = torch.rand(4, n, device=images.device).mul_(2).sub_(1)
    angle, scale = angle * math.radians(DEGREES), 1 + SCALE * scale
    cos, sin = angle.cos() / scale, angle.sin() / scale
    theta = torch.stack([cos, -sin, 2 * SHIFT * x, sin, cos, 2 * SHIFT * y], 1).view(n, 2, 3)
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


AUGMENTATIONS = {1: crop_and_flip, "affine": affine}  # by the value of the option aug
