"""Figures of kernels, of their VAEs, and of curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.transforms import Affine2D

from runs.files import atomic_write

# Distinct for color-blind readers (Okabe and Ito 2008; the last is the wine of Tol 2021, in place of their yellow).
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
# Solid lines, then dashed ones.
plt.rcParams["axes.prop_cycle"] = plt.cycler(linestyle=("-", "--")) * plt.cycler(color=CYCLE)
MARKERS = "oD^vsP*X<>"
COLORS = "RdBu_r"
LATENT_RANGE = 2.4  # decoded kernels are drawn at codes between minus and plus this
LATENT_STEPS = 7
NORM_FLOOR = 1e-5  # smaller norms are drawn as this one
COLUMNS = 16  # kernels in a row of `plot_rows`
TILES = 8  # kernels in a row of `plot_before_after`


def save(figure: plt.Figure, path: Path, tight: bool = False, vector: bool = False) -> None:
    """Write a figure as PNG, with `vector` also as PDF, atomically, and close it; `tight` cuts its margins.

    Raises UserError.
    """
    box = "tight" if tight else None
    with atomic_write(path) as file:
        figure.savefig(file, dpi=110, format="png", bbox_inches=box)
    if vector:
        with atomic_write(path.with_suffix(".pdf")) as file:
            figure.savefig(file, format="pdf", bbox_inches=box, metadata={"CreationDate": None})
    plt.close(figure)


class Curve(NamedTuple):
    """A curve of `plot_panels`. Where `x` are words, they stand side by side; `spread` is the error of `y`.

    `published` are points (x, y) to compare with, drawn with hollow markers in the same color.
    """

    label: str
    x: Sequence[float | str]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    published: Sequence[tuple[float | str, float]] = ()


def plot_panels(
    panels: dict[str, list[Curve]],
    xlabel: str | Sequence[str],
    title: str = "",
    log: bool = False,
    bands: bool = False,
    rows: int = 1,
    floors: Mapping[str, float | None] = {},
) -> plt.Figure:
    """A figure of panels in rows, by the label of the y-axis. Beside each row is one legend of all its panels, where
    curves of the same label look the same.

    The last row can have fewer panels. `xlabel` is the label of the x-axis, or one for each panel. With `bands` the
    spread is a band around a line, otherwise a bar at each point; at a word, the bars of the curves stand side by side.
    `floors` are the lower ends of some y-axes.
    """
    columns = -(-len(panels) // rows)
    size = (4.5 * columns + 1.5, 3.6 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="tight", squeeze=False)
    xlabels = [xlabel] * len(panels) if isinstance(xlabel, str) else xlabel
    named, styles = list(panels.items()), list(plt.rcParams["axes.prop_cycle"])
    hollow = {"markerfacecolor": "none", "markersize": 5, "linewidth": 1, "linestyle": "none" if bands else "--"}
    for panel, (axis, xlabel, (ylabel, curves)) in enumerate(zip(axes.flat[: len(named)], xlabels, named, strict=True)):
        row = named[panel // columns * columns :][:columns]
        labels = list(dict.fromkeys(curve.label for _, own in row for curve in own))
        for i, curve in enumerate(curves):
            place = labels.index(curve.label)
            style, marker = styles[place % len(styles)], MARKERS[place % len(MARKERS)]
            shift = 0.05 * (i - (len(curves) - 1) / 2) if isinstance(curve.x[0], str) else 0
            moved = Affine2D().translate(shift, 0) + axis.transData
            if bands:
                axis.plot(curve.x, curve.y, label=curve.label, **style)
                low, high = np.subtract(curve.y, curve.spread), np.add(curve.y, curve.spread)
                axis.fill_between(curve.x, low, high, color=style["color"], alpha=0.25, linewidth=0)
            else:
                look = {"marker": marker, "markersize": 5, "linewidth": 1, "capsize": 2, "transform": moved, **style}
                axis.errorbar(curve.x, curve.y, curve.spread, label=curve.label, **look)
            if curve.published:
                points = zip(*curve.published, strict=True)
                axis.plot(*points, color=style["color"], marker=marker, transform=moved, **hollow)
        if any(curve.published for curve in curves):
            axis.errorbar([], [], color="gray", marker="o", label="published", **hollow)
        axis.set(xlabel=xlabel, ylabel=ylabel, **({"xscale": "log", "yscale": "log"} if log else {}))
        if isinstance(curves[0].x[0], str):  # so that points beside a word are nearer to it than to the frame
            axis.set_xlim(-0.5, len({word for curve in curves for word in curve.x}) - 0.5)
        axis.set_ylim(bottom=floors.get(ylabel))
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for row in axes:
        shown = [axis for axis in row if axis.axison]
        handles = {label: h for axis in shown for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        shown[-1].legend(handles.values(), handles, loc="upper left", bbox_to_anchor=(1, 1))
    if title:
        figure.suptitle(title)
    return figure


def plot_intervals(panels: dict[str, Curve], xlabel: str, rows: int = 1) -> plt.Figure:
    """A figure of panels in rows, by title: a line for each name in `x`, with `y` and its spread on it."""
    columns, lines = len(panels) // rows, max(len(curve.x) for curve in panels.values())
    size = (4.5 * columns, rows * (1.2 + 0.3 * lines))
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="tight", squeeze=False)
    for axis, (title, curve) in zip(axes.flat, panels.items(), strict=True):
        axis.errorbar(curve.y, curve.x, xerr=curve.spread, fmt="o", capsize=3)
        axis.axvline(0, color="gray", linewidth=1)
        axis.set_ylim(len(curve.x) - 0.5, -0.5)  # the first row on top
        axis.grid(axis="x", alpha=0.3)
        axis.locator_params(axis="x", nbins=5)  # so that long labels do not touch
        axis.set(title=title, xlabel=xlabel)
    return figure


def kernel_image(kernel: torch.Tensor) -> np.ndarray:
    """A kernel (1, k, k) as (k, k), scaled so that its largest weight is 1 in absolute value and zero stays zero."""
    return (kernel[0] / kernel.abs().max().clamp_min(1e-12)).numpy()


def draw_tiles(axis: plt.Axes, kernels: torch.Tensor, columns: int) -> None:
    """Draw kernels (n, 1, k, k) into a panel, `columns` in a row, each on its own scale, with gaps between them."""
    n, k = len(kernels), kernels.shape[-1]
    picture = np.full((-(-n // columns) * (k + 1), columns * (k + 1)), np.nan)
    for i, kernel in enumerate(kernels):
        top, left = i // columns * (k + 1), i % columns * (k + 1)
        picture[top : top + k, left : left + k] = kernel_image(kernel)
    axis.imshow(picture[:-1, :-1], cmap=COLORS, vmin=-1, vmax=1, interpolation="nearest")
    axis.axis("off")


def plot_grid(kernels: torch.Tensor, rows: int, columns: int) -> plt.Figure:
    """A grid of kernels drawn at random from (n, 1, k, k)."""
    figure, axis = plt.subplots(figsize=(0.5 * columns, 0.5 * rows + 0.5))
    drawn = np.random.default_rng(0).permutation(len(kernels))[: rows * columns]
    draw_tiles(axis, kernels[drawn], columns)
    k = kernels.shape[-1]
    figure.suptitle(f"{len(drawn)} of {len(kernels)} source kernels, {k}x{k}; red > 0, blue < 0")
    return figure


@torch.no_grad()
def plot_latent_space(vae, kernels: torch.Tensor) -> plt.Figure:
    """Two panels for a VAE with z_dim 2: means of r(z|w) of kernels (n, 1, k, k), and decoder means at a grid of z."""
    means = vae.encode(kernels)[0].flatten(1).numpy()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.5), layout="tight")
    left.scatter(*means.T, s=8, alpha=0.5, c=kernels.flatten(1).norm(dim=1), cmap="viridis")
    left.set(title=f"mean of r(z|w) of {len(kernels)} test kernels (color: norm)", xlabel="z1", ylabel="z2")
    ticks = torch.linspace(-LATENT_RANGE, LATENT_RANGE, LATENT_STEPS)
    codes = torch.cartesian_prod(ticks, ticks)
    for code, mean in zip(codes.numpy(), vae.decode(codes.view(-1, 2, 1, 1))[0], strict=True):
        picture = plt.get_cmap(COLORS)(0.5 + 0.5 * kernel_image(mean))
        right.add_artist(AnnotationBbox(OffsetImage(picture, zoom=5, interpolation="nearest"), code, frameon=False))
    right.set(title="decoder mean at these codes", xlabel="z1", ylabel="z2")
    limits = (-1.2 * LATENT_RANGE, 1.2 * LATENT_RANGE)
    plt.setp((left, right), xlim=limits, ylim=limits)
    return figure


def plot_rows(rows: dict[str, torch.Tensor], title: str) -> plt.Figure:
    """Rows of kernels (n, 1, k, k) by name, at most `COLUMNS` in a row."""
    figure, axes = plt.subplots(len(rows), figsize=(0.55 * COLUMNS + 1.5, 0.6 * len(rows) + 0.6))
    for axis, (name, kernels) in zip(axes, rows.items(), strict=True):
        draw_tiles(axis, kernels[:COLUMNS], COLUMNS)
        axis.text(-0.02, 0.5, name, ha="right", va="center", transform=axis.transAxes)
    figure.suptitle(title)
    return figure


def plot_before_after(before: torch.Tensor, after: torch.Tensor) -> plt.Figure:
    """The same kernels (n, 1, k, k) before and after a training, side by side."""
    columns = min(len(before), TILES)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2 * -(-len(before) // columns) / columns + 0.4))
    for axis, kernels, title in zip(axes, (before, after), ("before", "after"), strict=True):
        draw_tiles(axis, kernels, columns)
        axis.set_title(title, fontsize=10)
    return figure


def plot_norms(norms: dict[str, np.ndarray], thresholds: dict[str, float]) -> plt.Figure:
    """Histograms of kernel norms by name, in logarithmic bins, with a line at each threshold."""
    figure, axes = plt.subplots(1, len(norms), figsize=(5 * len(norms), 3.4), squeeze=False, layout="tight")
    for axis, (name, values) in zip(axes[0], norms.items(), strict=True):
        low, high = max(values.min(), NORM_FLOOR), max(values.max(), 10 * NORM_FLOOR)
        axis.hist(np.maximum(values, low), np.geomspace(low, high, 80))
        if name in thresholds:
            kept = (values >= thresholds[name]).sum()
            axis.axvline(thresholds[name], color="C3", label=f"threshold {thresholds[name]:g}: {kept} kernels")
            axis.legend()
        axis.set(xscale="log", yscale="log", xlabel="norm", ylabel="kernels", title=name)
    return figure


def plot_kl(rows: list[dict[str, float | str]]) -> plt.Figure:
    """The KL against the posterior's variance, from `vae_figures.kl_rows`: a color per prior, a line per kind."""
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="tight")
    for prior, label, color in (("kl_dwp", "deep weight prior", "C0"), ("kl_normal", "N(0, 1)", "C1")):
        for kind, line in (("real", "-"), ("noise", ":")):
            own = [row for row in rows if row["kernels"] == kind]
            x, y = [row["posterior_variance"] for row in own], [row[prior] for row in own]
            axis.plot(x, y, line, color=color, label=f"{label}, {kind} kernels")
    axis.set(xscale="log", xlabel="posterior variance of each weight", ylabel="KL, nats per kernel")
    # Far from all kernels the encoder extrapolates, and the bound is larger by many orders of magnitude.
    axis.set_ylim(0, 1.2 * max(row["kl_normal"] for row in rows))
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def plot_images(rows: dict[str, tuple[torch.Tensor, list[str]]]) -> plt.Figure:
    """Rows of images (n, 1 or 3, h, w) in uint8 by title, each image below its caption."""
    columns = max(len(images) for images, _ in rows.values())
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.4 * columns, 1.9 * len(rows) + 0.2), squeeze=False)
    for line, (title, (images, captions)) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.axis("off")
        line[0].text(0, 1.45, title, transform=line[0].transAxes, fontweight="bold")
        for axis, image, caption in zip(line, images, captions, strict=False):
            axis.imshow(image.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=255)
            axis.set_title(caption, fontsize=7)
    return figure
