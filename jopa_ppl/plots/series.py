"""What runs over time or sweeps: states, plans, the free energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax.typing import ArrayLike

from jopa_ppl.colours import BLUE, COLOURS, RED
from jopa_ppl.errors import ShapeError
from jopa_ppl.plots.style import axes_of, half_width, legend_beside, picked, series_of, tidy
from jopa_ppl.posterior.posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trajectories(source: Posterior | ArrayLike, site: str = "x", *,
                 variance: ArrayLike | None = None, index: int | tuple | None = None,
                 labels: Sequence[str] | None = None, observed: ArrayLike | None = None,
                 seen: int | None = None, dt: float | None = None, unit: str | None = None,
                 level: float = 0.9, ax: Axes | None = None) -> Axes:
    """Means over time with central bands, one colour an element.

    Args:
        source: a posterior, or means (T, d) with `variance` (T, d).
        site: a site of a scan. First states (`x0`) are put in front, so that step t is when datum
            t was observed: a site "x" of T steps is drawn at 0, .., T.
        index: which element of plates, e.g. the trajectory.
        labels: names of the d elements.
        observed: data (T, d) or (T, d') about the first d' elements, drawn as dots, NaN where
            missing; of all elements of plates, (T, N, d'), where `index` picks one of them.
        seen: number of steps observed; what follows is marked as predicted. Default: to the last
            row of `observed` that is not missing.
        dt: seconds a step; time is then in s.
        unit: of the values.
        level: probability within the band.

    Raises:
        ShapeError: the site is no series of vectors, or `observed` not about its elements;
        JopaError: `level` is no probability.
    """
    steps, mean, sd, plates, first = series_of(source, site, variance, index)
    dots = None if observed is None else _dots(observed, index, plates, mean.shape[1])
    ax, scale = axes_of(ax), dt or 1
    names = labels or ([site] if mean.shape[1] == 1 else
                       [f"{site}[{i}]" for i in range(mean.shape[1])])
    for i, name in enumerate(names):
        colour = COLOURS[i % len(COLOURS)]
        if sd is not None:
            half = half_width(level) * sd[:, i]
            ax.fill_between(scale * steps, mean[:, i] - half, mean[:, i] + half, color=colour,
                            alpha=0.22, lw=0)
        ax.plot(scale * steps, mean[:, i], color=colour, lw=1.4, label=name)
    if dots is not None:
        size = 4 if np.isfinite(dots[:, 0]).sum() < 100 else 2.5
        for i in range(dots.shape[1]):
            ax.plot(scale * (first + np.arange(len(dots))), dots[:, i], "o", ms=size, mew=size / 8,
                    mec="white", color=COLOURS[i % len(COLOURS)], clip_on=False, zorder=3)
        ax.plot([], [], "o", color="0.4", ms=4, label="observed")
        there = np.flatnonzero(~np.isnan(dots).all(1))
        seen = first + there[-1] + 1 if seen is None and len(there) else seen
    if sd is not None:
        ax.fill_between([], [], [], color="0.4", alpha=0.3, lw=0, label=f"{level:.0%} band")
    if seen is not None and seen < steps[-1]:
        ax.axvspan(scale * (seen - 0.5), scale * steps[-1], color="0.5", alpha=0.1, lw=0, zorder=0,
                   label="predicted")
    ax.set(ylabel=_with_unit("value", unit), xlim=(scale * steps[0], scale * steps[-1]))
    _time_axis(ax, dt)
    legend_beside(ax)
    return tidy(ax)


def plan(source: Posterior | ArrayLike, site: str = "u", *, variance: ArrayLike | None = None,
         index: int | tuple | None = None, limit: float | None = None, label: str | None = None,
         dt: float | None = None, unit: str | None = None, level: float = 0.9,
         ax: Axes | None = None) -> Axes:
    """A plan: each action held for its step, with the band of its belief.

    Args:
        source: a plan's posterior, or means (T, du) with `variance` (T, du).
        site: the actions' site.
        index: which element of plates.
        limit: drawn at plus and minus this value.
        label: name in the legend, where several plans share axes.
        dt, unit, level: as in `trajectories`.

    Raises:
        ShapeError: the site is no series of vectors; JopaError: `level` is no probability.
    """
    steps, mean, sd, *_ = series_of(source, site, variance, index)
    ax, scale = axes_of(ax), dt or 1
    edges = scale * np.append(steps, steps[-1] + 1)
    drawn = len([a for a in ax.lines if a.get_gid() == "plan"])
    for i in range(mean.shape[1]):
        colour = COLOURS[(drawn + i) % len(COLOURS)]
        value = np.append(mean[:, i], mean[-1, i])
        if sd is not None:
            half = half_width(level) * np.append(sd[:, i], sd[-1, i])
            ax.fill_between(edges, value - half, value + half, step="post", color=colour,
                            alpha=0.22, lw=0, label=f"{level:.0%} band" if i == 0 else None)
        name = label or (site if mean.shape[1] == 1 else None)
        ax.step(edges, value, where="post", color=colour, lw=1.6, gid="plan",
                ls="--" if drawn else "-",                 # what lies under it shows through
                label=name or f"{site}[{i}]")
    ax.axhline(0, color="0.6", lw=0.8, zorder=0)
    if limit is not None:
        for edge in (-limit, limit):
            ax.axhline(edge, color="0.3", lw=1, ls="--", label="limit" if edge > 0 else None)
    ax.set(ylabel=_with_unit("action", unit), xlim=(edges[0], edges[-1]))
    _time_axis(ax, dt)
    legend_beside(ax)
    return tidy(ax)


def free_energy(source: Posterior | ArrayLike | Mapping[str, Posterior | ArrayLike], *,
                above_end: bool = False, ax: Axes | None = None) -> Axes:
    """The free energy F = -ELBO after each sweep, in nats.

    Args:
        source: a posterior, an array (sweeps,), or several of them by name.
        above_end: draw F above the least value of all, on a log scale; a sweep in which F rose by
            more than rounding is crossed out in orange.
    """
    ax = axes_of(ax)
    several = source if isinstance(source, Mapping) else {"": source}
    curves = {n: np.asarray(s.free_energy if isinstance(s, Posterior) else s, float)
              for n, s in several.items()}
    least = min((c.min() for c in curves.values() if len(c)), default=0.0)
    for (name, curve), colour in zip(curves.items(), COLOURS * len(curves)):
        sweeps = np.arange(1, len(curve) + 1)
        shown = curve - least if above_end else curve
        # The least value itself has no logarithm.
        kept = shown > 0 if above_end else np.ones(len(shown), bool)
        ax.plot(sweeps[kept], shown[kept], ".-", color=colour, ms=5, lw=1.2, label=name or None)
        rose = np.append(False, np.diff(curve) > 1e-9 * np.abs(curve[:-1])) & kept
        if above_end and rose.any():
            ax.plot(sweeps[rose], shown[rose], "x", color=RED if colour != RED else BLUE, ms=7,
                    label="rose")
    if above_end:
        ax.set_yscale("log")
    ax.set(xlabel="sweep", ylabel="F above its least (nats)" if above_end
           else "free energy (nats)")
    if len(curves) == 1 and isinstance(source, Posterior):
        state = "converged" if source.converged else "not converged"
        ax.set_title(f"{state} after {source.num_iters} sweeps: {source.free_energy[-1]:.6g} nats",
                     fontsize=10, loc="left")
    ax.xaxis.get_major_locator().set_params(integer=True)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8, frameon=False)
    return tidy(ax)


def _dots(observed: ArrayLike, index: int | tuple | None, plates: tuple[int, ...], d: int
          ) -> np.ndarray:
    """Data (T, d'), d' <= d, of the element that was picked."""
    data = np.asarray(observed)
    # (T, N) is one number for each of N trajectories where it cannot be about the d elements.
    scalar = data.ndim == 2 and data.shape[1] > d
    data = picked(data, index, plates, event=0 if scalar else 1)
    data = data[:, None] if data.ndim == 1 else data
    if data.ndim != 2 or data.shape[1] > d:
        raise ShapeError("the observed data are not about its elements", found=np.shape(observed),
                         expected=f"(T,) or (T, d'), with d' at most {d}",
                         fix="pick the data that index= picks, or those of the elements drawn")
    return data


def _time_axis(ax: Axes, dt: float | None) -> None:
    ax.set_xlabel("time (s)" if dt else "step")
    if not dt:
        ax.xaxis.get_major_locator().set_params(integer=True)


def _with_unit(name: str, unit: str | None) -> str:
    return name if unit is None else f"{name} ({unit})"
