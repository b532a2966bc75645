"""Random changes of images: crops and flips, and affine ones, against what they may be."""

import numpy as np
import torch

from data.augment import affine, crop_and_flip


def test_augmented_images_are_crops_and_flips():
    torch.manual_seed(0)
    images = torch.rand(200, 3, 32, 32)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    out = crop_and_flip(images).numpy()
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


def test_affine_images():
    """A spot moves to where a rotation, a shift and a scale within the bounds put it, in each image by itself."""
    torch.manual_seed(0)
    side, middle = 41, 20
    images = torch.zeros(400, 1, side, side)
    spots = [(middle, middle), (middle, middle + 12)]  # a point on the axis, and one to its right
    found = []
    for row, column in spots:
        images.zero_()[:, :, row - 1 : row + 2, column - 1 : column + 2] = 1
        torch.manual_seed(1)
        out = affine(images)[:, 0].double()
        mass = out.sum((1, 2))
        place = torch.arange(side, dtype=torch.float64)
        found.append(torch.stack([(out.sum(1) * place).sum(1), (out.sum(2) * place).sum(1)], 1) / mass[:, None])
    shifts, arms = found[0] - middle, found[1] - found[0]
    assert shifts.abs().max() < 0.11 * side * 1.2 and (shifts.std(0) > 1).all()
    length, angle = arms.norm(dim=1) / 12, torch.rad2deg(torch.atan2(arms[:, 1], arms[:, 0]))
    assert 0.88 < length.min() < 0.92 and 1.08 < length.max() < 1.12
    assert 9 < angle.max() < 11 and -11 < angle.min() < -9
    assert abs(np.corrcoef(angle, length)[0, 1]) < 0.2
