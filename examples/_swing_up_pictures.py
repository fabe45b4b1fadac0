"""What the swing-up leaves behind: a figure and an animation. Angles are in rad, times in s."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

DT = 0.05               # seconds a step, Gymnasium's
BLUE, ORANGE = "#0072b2", "#e69f00"         # Okabe & Ito
ZOOM = 8                # pixels of the animation for one of a frame
_STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 8}


def draw(path: Path, curve: Sequence[dict[str, Any]], ahead: Sequence[int], angles: np.ndarray
         ) -> None:
    """Returns of all starts against the steps that were learned from, errors of predicted frames
    over the mean frame's, and the angles (starts, steps) of the last."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 2.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3)
        steps = [c["environment_steps"] for c in curve]
        if len(curve) == 1:         # no curve: how the returns of its starts are spread
            left.hist(curve[0]["returns"], 25, color=BLUE)
            left.axvline(curve[0]["mean_return"], color=ORANGE, lw=2, label="mean")
            left.set(xlabel=f"return, learned from {steps[0]} steps", ylabel="starts")
        else:
            for c in curve:
                left.plot([c["environment_steps"]] * len(c["returns"]), c["returns"], "o",
                          color=BLUE, ms=3, alpha=0.3, mew=0)
            left.plot(steps, [c["mean_return"] for c in curve], "o-", color=ORANGE, label="mean")
            left.set(xlabel="environment steps learned from", ylabel="return", xticks=steps)
        left.legend(frameon=False)
        for c in curve:
            middle.plot(ahead, c["open_loop_ratio"], "o-", label=f"{c['environment_steps']} steps")
        middle.axhline(1, color="0.7", lw=0.8)
        middle.set(xlabel="steps ahead", ylabel="error / that of the mean frame", yscale="log")
        middle.legend(frameon=False)
        time = DT * np.arange(angles.shape[1])
        away = np.abs(angles).T
        right.plot(time, away, color=BLUE, lw=0.6, alpha=0.3)
        right.axhline(0.3, color="0.7", lw=0.8)
        right.set(xlabel="time (s)", ylabel="distance from upright (rad)", ylim=(0, np.pi))
        figure.savefig(path, dpi=150)


def animate(path: Path, happened: np.ndarray, imagined: np.ndarray, ahead: int) -> None:
    """Frames (T, H, W, 1) in [0, 1] side by side at 20 fps: what happens, what was imagined; how
    many steps ahead stands above it, and what is imagined begins anew after `ahead` of them."""
    count = min(len(happened), len(imagined))
    sides = [np.pad(x[:count, ..., 0], ((0, 0), (1, 1), (1, 1))) for x in (happened, imagined)]
    both = np.clip(np.concatenate(sides, -1) * 255, 0, 255).astype(np.uint8)
    images = []
    for t, x in enumerate(both):
        zoomed = np.kron(x, np.ones((ZOOM, ZOOM), np.uint8))
        image = Image.fromarray(np.pad(zoomed, ((16, 0), (0, 0)), constant_values=255))
        for at, words in ((4, "true"), (zoomed.shape[1] // 2 + 4,
                                        f"imagined, {t % ahead + 1} of {ahead} steps ahead")):
            ImageDraw.Draw(image).text((at, 2), words, fill=0)
        images.append(image)
    images[0].save(path, save_all=True, append_images=images[1:], duration=1000 * DT, loop=0)
