"""Figures of curves: what would hide something else."""

import pytest

from sweeps.plots import Curve, plot_panels


@pytest.mark.parametrize("x, places", [("50", 3), (50, 1)])
def test_nothing_hides_in_panels(x, places):
    """Curves of the same values at a word stand side by side, at a number they do not. The legend is beside the row."""
    curves = [Curve(name, [x], [0.8], [0.1], [(x, 0.7)]) for name in "abc"]
    figure = plot_panels({"accuracy": curves, "NLL": curves}, "images")
    figure.canvas.draw()
    left, right = figure.axes
    legend = right.get_legend()
    assert left.get_legend() is None and legend.get_window_extent().x0 >= right.get_window_extent().x1
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c", "published"]
    own = [bars.lines[0] for bars in left.containers[:3]]
    published = [line for line in left.lines if line.get_linestyle() == "--" and len(line.get_xydata())]
    for lines, y in ((own, 0.8), (published, 0.7)):
        assert [line.get_ydata().tolist() for line in lines] == [[y]] * 3
        assert len({line.get_transform().transform(line.get_xydata())[0, 0] for line in lines}) == places
        assert len({(line.get_color(), line.get_marker()) for line in lines}) == 3
