"""Frames: film strips, single pictures, animations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from jopa_ppl.colours import RED
from jopa_ppl.errors import ShapeError
from jopa_ppl.plots.style import axes_of, picked, series_of
from jopa_ppl.posterior.posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def film_strip(source: Mapping[str, ArrayLike] | Posterior, *,
               decode: Callable[[np.ndarray], ArrayLike] | None = None, site: str = "x",
               observed: ArrayLike | None = None, index: int | tuple | None = None,
               steps: Sequence[int] | None = None, seen: int | None = None,
               dt: float | None = None, limits: tuple[float, float] | None = (0, 1),
               invert: bool = False, ax: Axes | None = None) -> Axes:
    """Strips of frames under each other, time to the right.

    Args:
        source: {label: frames (T, H, W) or (T, H, W, channels)}, all of one size; or a posterior,
            whose mean states are decoded into the strip "belief", under the `observed` frames.
        decode: states (T, d) -> frames (T, H, W[, channels]); for a posterior.
        site, index: the states, as in `trajectories`; for a posterior.
        observed: frames of the first strip, NaN where missing; for a posterior. With channels and
            plates, (T, N, H, W, channels), `index` picks one element of them too.
        steps: which frames; default: at most 12, evenly spread.
        seen: number of frames observed: a line marks where prediction begins. Default: to the last
            observed frame.
        dt: seconds a step; time is then in s.
        limits: values that are black and white; None: the least and largest of all frames.
        invert: ink is dark on white paper.

    Missing frames are hatched.

    Raises:
        ShapeError: frames of different sizes, or none.
    """
    if isinstance(source, Posterior):
        source = _strips(source, decode, site, observed, index)
        if seen is None and observed is not None:
            gone = np.isnan(source["observed"]).reshape(len(source["observed"]), -1).all(1)
            seen = int(np.flatnonzero(~gone).max(initial=-1)) + 1
    strips = {name: _frames(name, x) for name, x in source.items()}
    sizes = {x.shape[1:] for x in strips.values()}
    if len(sizes) != 1:
        raise ShapeError("the strips differ in size", found=sorted(sizes), expected="one size",
                         fix="pass at least one strip, all of the same frames' size")
    height, width, channels = sizes.pop()
    most = max(len(x) for x in strips.values())
    if steps is None:
        steps = np.unique(np.linspace(0, most - 1, min(12, most)).round().astype(int))
    low, high = limits or (min(float(np.nanmin(x)) for x in strips.values()),
                           max(float(np.nanmax(x)) for x in strips.values()))
    gap = max(1, round(width / 16))
    size = (len(strips) * (height + gap) - gap, len(steps) * (width + gap) - gap)
    sheet = np.ones((*size, channels))
    ax = axes_of(ax, (0.75 * len(steps) + 1.2, 0.75 * len(strips) * height / width + 1.0))
    for row, strip in enumerate(strips.values()):
        for column, t in enumerate(steps):
            top, left = row * (height + gap), column * (width + gap)
            if t >= len(strip) or np.isnan(strip[t]).all():
                _hatch(ax, left, top, width, height)
                continue
            frame = np.clip((np.nan_to_num(strip[t], nan=low) - low) / (high - low), 0, 1)
            sheet[top:top + height, left:left + width] = 1 - frame if invert else frame
    sheet = np.repeat(sheet, 3, -1) if channels == 1 else sheet
    ax.imshow(sheet, interpolation="nearest", vmin=0, vmax=1)
    cut = sum(t < (seen if seen is not None else most) for t in steps)
    if 0 < cut < len(steps):
        ax.axvline(cut * (width + gap) - (gap + 1) / 2, color=RED, lw=2)
        ax.set_title("right of the line: predicted", color=RED, fontsize=8, loc="right")
    ax.set_xticks(np.arange(len(steps)) * (width + gap) + width / 2 - 0.5,
                  [f"{dt * t:.3g}" if dt else str(t) for t in steps])
    ax.set_yticks(np.arange(len(strips)) * (height + gap) + height / 2 - 0.5, list(strips))
    ax.set_xlabel("time (s)" if dt else "step")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def _strips(posterior: Posterior, decode: Callable | None, site: str, observed: Any,
            index: int | tuple | None) -> dict[str, np.ndarray]:
    if decode is None:
        raise ShapeError("no decoder", site=site, found="decode=None",
                         expected="a function from states (T, d) to frames",
                         fix="pass decode=vae.decode, or pass the frames themselves")
    steps, mean, _, plates, first = series_of(posterior, site, None, index)
    mean = mean[steps >= first]
    if observed is None:
        return {"belief": np.asarray(decode(mean))}
    observed = picked(observed, index, plates, event=3)
    return {"observed": observed, "belief": np.asarray(decode(mean[:len(observed)]))}


def _frames(name: str, frames: ArrayLike) -> np.ndarray:
    frames = np.asarray(frames, float)
    frames = frames[..., None] if frames.ndim == 3 else frames
    if frames.ndim != 4 or not len(frames) or frames.shape[-1] not in (1, 3):
        raise ShapeError(f"the strip '{name}' holds no frames", found=frames.shape,
                         expected="(T, H, W), (T, H, W, 1) or (T, H, W, 3)",
                         fix="put time in front; pick one trajectory")
    return frames


def _hatch(ax: Axes, left: float, top: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle
    ax.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fc="0.96", ec="0.75",
                           hatch="////", lw=0, zorder=2))


def picture(frame: ArrayLike, *, title: str = "", edge: str = "0.7",
            limits: tuple[float, float] = (0, 1), ax: Axes | None = None) -> Axes:
    """One frame (H, W), (H, W, 1) or (H, W, 3), framed in the colour `edge`.

    `ax.images[-1].set_data(..)` shows another one, as an animation does.

    Args:
        limits: values that are black and white, of a frame without colours.
        ax: axes to draw in; None: new ones.
    """
    ax = axes_of(ax, (2.4, 2.6))
    ax.imshow(np.squeeze(np.asarray(frame)), cmap="gray", vmin=limits[0], vmax=limits[1],
              interpolation="nearest")
    ax.set(xticks=[], yticks=[], title=title)
    for spine in ax.spines.values():
        spine.set(visible=True, color=edge)
    return ax


def reveal(artists: Iterable[Artist], until: float) -> None:
    """Clip artists to what lies left of `until` in data coordinates: what has happened by then."""
    from matplotlib.patches import Rectangle
    for artist in artists:
        ax = artist.axes
        (left, _), (low, high) = ax.get_xlim(), ax.get_ylim()
        artist.set_clip_path(Rectangle((left, low), until - left, high - low,
                                       transform=ax.transData))


def animate(draw: Callable[[int], Any], steps: Iterable[int], path: str | PathLike, *,
            figure: Figure, fps: float = 20, dpi: int = 100) -> Path:
    """Write a GIF: for every step, `draw(step)` changes the figure, which is then photographed.

    Args:
        draw: called with each of the `steps`.
        path: of the GIF; folders are made where missing.
        figure: what is photographed; fps: pictures a second; dpi: dots an inch.

    Returns:
        the path.
    """
    from matplotlib.animation import PillowWriter
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = PillowWriter(fps=round(fps))
    with writer.saving(figure, str(path), dpi=dpi):
        for step in steps:
            draw(step)
            writer.grab_frame()
    return path
