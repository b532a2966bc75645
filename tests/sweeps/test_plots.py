"""Figures of curves: what would hide something else."""

import pytest

from sweeps.plots import Curve, plot_panels


@pytest.mark.parametrize("x, places", [("50", 3), (50, 1)])
def test_nothing_hides_in_panels(x, places):
    """Curves of the same values at a word stand side by side, at a number they do not. The legend is beside the row."""
    curves = [Curve(name, [x], [0.8], [0.1], [(x, 0.7)]) for name in "abc"]
    bare = [curve._replace(published=()) for curve in curves]
    figure = plot_panels({"NLL": bare, "accuracy": curves, "ECE": bare}, "images", rows=2, floors={"accuracy": 0.2})
    figure.canvas.draw()
    first, left, lower, _ = figure.axes
    legend = left.get_legend()
    assert first.get_legend() is None and legend.get_window_extent().x0 >= left.get_window_extent().x1
    assert first.get_ylim()[0] > 0.6 and left.get_ylim()[0] == 0.2
    assert 0 < lower.get_legend().get_window_extent().x0 - lower.get_window_extent().x1 < 20
    x0, x1 = left.get_xlim()
    for curve in left.containers:
        place = left.transData.inverted().transform(curve.lines[0].get_transform().transform((0, 0.8)))[0]
        assert x == 50 or abs(place) < 0.2 * (x1 - x0)
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c", "published"]
    own = [bars.lines[0] for bars in left.containers[:3]]
    published = [line for line in left.lines if line.get_linestyle() == "--" and len(line.get_xydata())]
    for lines, y in ((own, 0.8), (published, 0.7)):
        assert [line.get_ydata().tolist() for line in lines] == [[y]] * 3
        assert len({line.get_transform().transform(line.get_xydata())[0, 0] for line in lines}) == places
        assert len({(line.get_color(), line.get_marker()) for line in lines}) == 3


def test_curves_that_some_panels_lack():
    """A label has one look in a row, that of the legend, and the axis shows the words of all curves."""
    curves = [Curve(name, [word], [0.8], [0.1]) for name, word in (("a", "mnist"), ("b", "cifar"), ("c", "mnist"))]
    figure = plot_panels({"accuracy": curves[1:], "NLL": curves}, "images")
    figure.canvas.draw()
    left, right = figure.axes
    looks = [
        {bars.get_label(): (bars.lines[0].get_color(), bars.lines[0].get_marker()) for bars in panel.containers}
        for panel in (left, right)
    ]
    assert looks[0] == {name: looks[1][name] for name in "bc"} and len(set(looks[1].values())) == 3
    assert right.get_xlim() == (-0.5, 1.5)
