"""Pictures of the examples say what they show: keys, goals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure

RNG = np.random.default_rng(0)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, in place of files."""
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
    return kept


def titled(figure: Figure, words: str) -> Axes:
    """The first panel whose title holds the words."""
    return next(ax for ax in figure.axes if words in ax.get_title(loc="left"))


def rotating(digit: int) -> object:
    from examples.rotating_digits import LENGTH, Run
    frames = RNG.random((3, LENGTH, 28, 28, 1))
    series = RNG.normal(size=(3, LENGTH, 4))
    turns = np.exp(0.1j * np.arange(4))
    return Run(0, digit, 8, turns, 0.5, 1.0, 1.0, 1, *frames, *series[:2], np.abs(series[2]))


def test_the_colours_of_latents_have_a_key(drawn, tmp_path):
    from examples._digit_pictures import draw
    draw([rotating(0), rotating(1)], tmp_path / "digits.png")
    panel = titled(drawn[0], "latent state")
    legend = panel.get_legend()
    key = {text.get_text(): handle for text, handle in zip(legend.get_texts(),
                                                           legend.legend_handles)}
    for i in range(4):
        line = next(a for a in panel.lines if a.get_label() == f"latent {i + 1}")
        assert same_color(key[f"latent {i + 1}"].get_color(), line.get_color())
    assert len({handle.get_color() for name, handle in key.items() if "latent" in name}) == 4
    assert any("sd" in name for name in key) and any("encoder" in name for name in key)


def test_a_dot_of_a_legend_is_no_eigenvalue(drawn, tmp_path):
    from examples._digit_pictures import draw
    draw([rotating(0)], tmp_path / "digits.png")
    drawn[0].canvas.draw()
    panel = titled(drawn[0], "eigenvalues of A")
    assert not panel.get_legend().get_window_extent().overlaps(panel.get_window_extent())


def test_a_plan_of_digits_shows_its_goal(drawn, tmp_path: Path):
    from examples._controlled_pictures import draw
    from examples.controlled_digits import EACH, HORIZON, LENGTH, UNSEEN, Study
    film, goal = RNG.random((HORIZON + 1, 28, 28, 1)), RNG.random((28, 28, 1))
    study = Study(0, RNG.normal(size=(4, 4, 4)), RNG.random(10),
                  RNG.random((LENGTH, len(UNSEEN) * EACH)), *RNG.random((2, LENGTH, 28, 28, 1)),
                  np.arange(4.0), np.arange(4.0) + 1, np.zeros(4), np.zeros((HORIZON, 4)), film,
                  goal, {})
    draw([study], tmp_path / "controlled.png")
    panel = titled(drawn[0], "planned")
    labels = [t.get_text() for t in panel.get_yticklabels()]
    assert labels[1].startswith("goal")
    (shown,) = (np.asarray(image.get_array()) for image in panel.images)
    # A row is 28 pixels and a gap of 3, and so is a frame; the last one is that of the goal.
    np.testing.assert_allclose(1 - shown[31:31 + 28, -28:], goal[..., 0])
    np.testing.assert_allclose(1 - shown[:28, -28:], film[-1, ..., 0])
