"""The figure of the controlled digits. Angles and errors are in degrees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples._digit_pictures import DIMENSIONS, strip

if TYPE_CHECKING:
    from examples.controlled_digits import Study


def draw(studies: Sequence[Study], path: Path) -> None:
    """A prediction and a plan as films; errors, what an action does, and plans of all seeds."""
    from examples.controlled_digits import SEEN

    first = studies[0]
    figure = Figure(figsize=(14, 9.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(4.6, 4.4))
    predicted, planned = top.subplots(2, 1)
    strip(predicted, {"true": first.true, "model": first.frames},
          (0, 2, 4, *range(10, 100, 8), 99), SEEN)
    predicted.set_title("held actions that were not learned from: 5 frames seen (left of the line),"
                        f" 95 predicted; seed {first.seed}", fontsize=10, loc="left")
    middle = 3 * len(first.goals) // 4
    wanted = np.zeros_like(first.film)         # of the goal there is one image, for the last step
    wanted[-1] = first.goal
    strip(planned, {"under the plan": first.film, "goal image": wanted},
          range(0, len(first.film), 2), 1)
    planned.set_title(f"planned from the first frame: to turn by {first.goals[middle]:.0f} degrees",
                      fontsize=10, loc="left")
    left, centre, right = bottom.subplots(1, 3)
    _draw_errors(left, studies)
    _draw_turns(centre, studies)
    _draw_plans(right, studies)
    figure.savefig(path, dpi=110)


def _draw_errors(axes: Axes, studies: Sequence[Study]) -> None:
    from examples.controlled_digits import EACH, SEEN, UNSEEN

    errors = np.stack([s.predicted for s in studies])
    for i, (regime, colour) in enumerate(zip(UNSEEN, DIMENSIONS)):
        mean = errors[..., i * EACH:(i + 1) * EACH].mean((0, 2))
        axes.plot(mean, color=colour, lw=1.3, label=regime)
    axes.plot(errors.max((0, 2)), color="0.6", lw=0.9, label="worst of all")
    axes.axvline(SEEN - 0.5, color="#d55e00", lw=1.2)
    axes.set(xlabel="step", ylabel="angle error (degrees)", ylim=(0, 1.3 * errors.max()))
    axes.set_title("predictions, mean over trajectories", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_turns(axes: Axes, studies: Sequence[Study]) -> None:
    from examples.controlled_digits import LIMIT

    u = np.linspace(-1, 1, 41)
    for study in studies:
        powers = u[:, None] ** np.arange(len(study.M))
        values = np.linalg.eigvals(np.einsum("uk,kij->uij", powers, study.M))
        axes.plot(LIMIT * u, np.sort(np.abs(np.degrees(np.angle(values))), 1)[:, ::2], ".",
                  color=DIMENSIONS[0], ms=3)
    axes.plot([], [], ".", color=DIMENSIONS[0], label="eigenvalues of M(u), all seeds")
    for k in (1, 2, 3, 4):
        axes.plot(LIMIT * u, k * LIMIT * np.abs(u), color="0.75", lw=0.8, zorder=0)
        axes.text(LIMIT, k * LIMIT, f" {k}x", fontsize=8, color="0.4", va="center")
    axes.set(xlabel="action (degrees a step)", ylabel="turn of the latent (degrees a step)")
    axes.set_title("what an action does", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="upper center")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_plans(axes: Axes, studies: Sequence[Study]) -> None:
    for study, colour in zip(studies, DIMENSIONS):
        axes.plot(study.goals, study.planned, "o", color=colour, ms=4, label=f"seed {study.seed}")
    axes.set(xlabel="turn to the goal image (degrees)", ylabel="angle error (degrees)",
             xticks=range(-180, 181, 90), ylim=(0, 1.35 * max(s.planned.max() for s in studies)))
    axes.set_title("plans of 20 steps, actions up to 12 degrees", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
