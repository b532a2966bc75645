"""The demo: which digits it shows, its picture, and a whole demo on a small data set."""

import itertools

import torch

from experiments import demo
from models.configs import DATA_SETS


def test_the_digits_shown():
    """The last ones have the largest entropies, the first ones are others, by the seed."""
    p = torch.full((50, 10), 1e-3)
    for i, sure in enumerate(torch.linspace(0.95, 0.5, 50)):
        p[i, 3] = sure
    log_p = (p / p.sum(1, keepdim=True)).log()
    shown = demo.digits_shown(log_p, 0)
    assert shown == demo.digits_shown(log_p, 0) != demo.digits_shown(log_p, 1)
    assert shown[3:] == [49, 48, 47] and len(set(shown)) == 6


def test_a_demo(small_not_mnist, tmp_path, monkeypatch, capsys):
    """Both networks learn, from the same images and different kernels; table and picture are of both."""
    monkeypatch.setitem(DATA_SETS, "mnist", DATA_SETS["not-mnist"])
    monkeypatch.setattr(demo, "WATCHED", 20)
    monkeypatch.setattr(demo, "SAMPLES", 2)
    found = {}
    monkeypatch.setattr(
        demo, "draw", lambda *arguments, draw=demo.draw: found.update(all=arguments) or draw(*arguments)
    )
    demo.main(["--epochs", "4", "--out", str(tmp_path / "out")])
    logs, kernels, log_p, test, _ = found["all"]
    assert list(kernels) == [f"{label}, {when}" for label in demo.NETWORKS for when in ("before", "after")]
    assert list(logs) == list(log_p) == list(demo.NETWORKS)
    assert all([row["t"] for row in rows] == [1, 2, 3, 4] for rows in logs.values())
    assert all(p.shape == (len(test.labels), 10) for p in log_p.values())
    assert all(own.shape == (32, 1, 7, 7) for own in kernels.values())
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(kernels.values(), 2))
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert all(f"{label} " in out for label in demo.NETWORKS) and "10,000" not in out
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["demo.png"]
