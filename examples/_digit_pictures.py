"""Figures of turning digits: film strips, latent paths, eigenvalues and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples._digits import LENGTH, SEEN, STEP, Array

if TYPE_CHECKING:
    from examples.rotating_digits import Run

STRIP = (70, 80, 90, *range(100, 200, 10), 199)  # frames drawn
COLOURS = {0: "#0072b2", 1: "#e69f00", 8: "#009e73"}
DIMENSIONS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def draw(runs: Sequence[Run], path: Path) -> None:
    """Film strips and latent paths of one exemplar a digit; eigenvalues and errors of all runs."""
    shown: dict[int, Run] = {}
    for run in runs:
        shown.setdefault(run.digit, run)
    figure = Figure(figsize=(15, 2.7 * len(shown) + 4.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.7 * len(shown), 4.6))
    axes = top.subplots(len(shown), 2, width_ratios=(1.75, 1), squeeze=False)
    for row, (run, (film, path_)) in enumerate(zip(shown.values(), axes)):
        _draw_strip(film, run)
        _draw_path(path_, run, legend=row == 0)
    axes[-1, 0].set_xlabel("step")
    axes[-1, 1].set_xlabel("step")
    left, middle, right = bottom.subplots(1, 3, width_ratios=(1, 0.8, 1.5))
    draw_eigenvalues(left, middle, runs)
    _draw_errors(right, runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def strip(axes: Axes, rows: Mapping[str, Array], steps: Sequence[int] = STRIP, seen: int = SEEN
          ) -> None:
    """Frames (T, H, W, 1) at `steps`, a labelled row each; a line parts what was seen."""
    (size, _), gap = next(iter(rows.values())).shape[1:3], 3
    film = [np.concatenate([np.pad(frames[t, ..., 0], ((0, gap), (0, gap))) for t in steps], 1)
            for frames in rows.values()]
    axes.imshow(1 - np.concatenate(film)[:-gap, :-gap], cmap="gray", vmin=0, vmax=1)
    for edge in range(1, len(rows)):  # grey hairlines between the rows
        axes.axhline(edge * (size + gap) - (gap + 1) / 2, color="0.85", lw=0.8)
    cut = sum(t < seen for t in steps) * (size + gap) - (gap + 1) / 2
    axes.axvline(cut, color="#d55e00", lw=1.5)
    axes.set_xticks(np.arange(len(steps)) * (size + gap) + size / 2, steps)
    axes.set_yticks(np.arange(len(rows)) * (size + gap) + size / 2, list(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_strip(axes: Axes, run: Run) -> None:
    strip(axes, {"true": run.true, "VAE alone": run.reconstructed, "model": run.predicted})
    axes.set_title(f"digit {run.digit}, unseen exemplar {run.index}: observed left of the line, "
                   f"predicted right of it at {run.vs_mean:.2f} of the mean frame's error",
                   fontsize=10, loc="left")


def _draw_path(axes: Axes, run: Run, legend: bool) -> None:
    steps = np.arange(LENGTH)
    for i, colour in enumerate(DIMENSIONS[: run.state.shape[1]]):
        x, sd = run.state[:, i], run.sd[:, i]
        axes.fill_between(steps, x - 2 * sd, x + 2 * sd, color=colour, alpha=0.2, lw=0)
        axes.plot(steps, x, color=colour, lw=1.2, label=f"latent {i + 1}")
        axes.plot(steps, run.encoded[:, i], ".", color=colour, ms=1.8, alpha=0.6)
    axes.fill_between([], [], color="0.3", alpha=0.25, lw=0, label="mean ± 2 sd")
    axes.plot([], [], ".", color="0.3", ms=3, label="encoder of the true frame")
    axes.axvline(SEEN - 0.5, color="#d55e00", lw=1.5)
    reach = 1.4 * np.abs(run.encoded).max()
    axes.set(xlim=(0, LENGTH), ylim=(-reach, 1.7 * reach if legend else reach),
             xticks=range(0, LENGTH + 1, 50))
    axes.set_title("latent state: smoothed, then predicted", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize=8, loc="upper left", ncols=3, framealpha=1, edgecolor="none")


def draw_eigenvalues(axes: Axes, zoom: Axes, runs: Sequence[Run]) -> None:
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 721))
    for ax in (axes, zoom):
        ax.plot(circle.real, circle.imag, color="0.6", lw=1)
        ax.axhline(0, color="0.85", lw=0.8, zorder=0)
        for digit in sorted({run.digit for run in runs}):
            e = np.concatenate([run.eigenvalues for run in runs if run.digit == digit])
            ax.plot(e.real, e.imag, "o", color=COLOURS.get(digit, "0.3"), alpha=0.7, ms=6, mew=0,
                    label=f"digit {digit}")
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlabel("real")
    for k in (1, 2, 3):
        ray = np.exp(1j * np.radians(k * STEP)) * np.array([0.96, 1.0])
        zoom.plot(ray.real, ray.imag, ":", color="0.5", lw=1, zorder=0)
        zoom.annotate(f"{k * STEP:.1f}°", (0.9765, np.tan(np.radians(k * STEP)) * 0.9765),
                      fontsize=8, color="0.35", va="bottom")
    axes.set(aspect="equal", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), ylabel="imaginary",
             xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes.set_title("eigenvalues of A, all runs", fontsize=10, loc="left")
    # Beside the axes: a dot of the legend within the circle would be taken for an eigenvalue.
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    zoom.set(xlim=(0.976, 1.003), ylim=(-0.02, 0.2), xticks=(0.98, 0.99, 1))
    zoom.set_title("near 1 (axes stretched)", fontsize=10, loc="left")


def _draw_errors(axes: Axes, runs: Sequence[Run]) -> None:
    names = list(dict.fromkeys(run.name for run in runs))
    offset = {s: o for s, o in zip(dict.fromkeys(r.seed for r in runs), (0, 0.18, -0.18, 0.3))}
    for run in runs:
        x, colour = names.index(run.name) + offset.get(run.seed, 0), COLOURS.get(run.digit, "0.3")
        axes.plot(x, run.vs_mean / run.vs_reconstruction, "_", color="0.2", ms=14, mew=1.8)
        axes.plot(x, run.vs_mean, "o", color=colour, ms=7, alpha=0.85, mew=0)
    mean = np.mean([run.vs_mean for run in runs])
    axes.axhline(1, color="0.4", lw=1, ls="--", label="the mean of the observed frames")
    axes.axhline(mean, color="#d55e00", lw=1.2, label=f"mean of the runs, {mean:.2f}")
    axes.plot([], [], "_", color="0.2", ms=14, mew=1.8, label="the VAE's own reconstruction")
    axes.plot([], [], "o", color="0.4", ms=7, label="predicted, one dot a seed")
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="digit : unseen exemplar", ylabel="pixel error / mean frame's",
             ylim=(0, 1.45 * max(1.0, *(run.vs_mean for run in runs))))
    axes.set_title("error of 100 predicted frames", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="upper right", ncols=2, frameon=False)
