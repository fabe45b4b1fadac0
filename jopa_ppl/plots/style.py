"""Colours, axes and numbers that all pictures share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jax.scipy.stats import norm

from jopa_ppl.errors import JopaError, ShapeError
from jopa_ppl.posterior.labels import roles
from jopa_ppl.posterior.posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.legend import Legend
    from matplotlib.transforms import Bbox


class Series(NamedTuple):
    """A belief over time: steps (T,), mean (T, d), sd (T, d) or None; sizes of the plates of which
    `index` picked an element; the step of the first datum about it."""

    steps: np.ndarray
    mean: np.ndarray
    sd: np.ndarray | None
    plates: tuple[int, ...] = ()
    first: int = 0


def axes_of(ax: Axes | None, size: tuple[float, float] = (6.4, 3.2)) -> Axes:
    """The given axes, or new ones of `size` inches."""
    if ax is not None:
        return ax
    from matplotlib import pyplot
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def tidy(ax: Axes) -> Axes:
    """Axes without the frame's upper and right edge, on a light grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", lw=0.8)
    ax.set_axisbelow(True)
    return ax


def legend_beside(ax: Axes, **options: Any) -> Legend:
    """A legend on the right of the axes, never over what they show. Its room is taken from the
    axes, not from those next to them."""
    legend = ax.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1),
                       **options)
    if ax.get_axes_locator() is None:
        ax.set_axes_locator(_Beside(ax))
    return legend


class _Beside:
    """Where axes go, in parts of their figure: their own place less what their legend needs beside
    them, up to what is drawn next."""

    def __init__(self, ax: Axes) -> None:
        self.get_subplotspec = ax.get_subplotspec       # tight_layout asks for it

    def __call__(self, ax: Axes, renderer: Any) -> Bbox:
        from matplotlib.transforms import Bbox
        place, legend, whole = ax.get_position(original=True), ax.get_legend(), ax.figure.bbox
        if legend is None or ax.figure.get_layout_engine() is not None:  # which leaves room itself
            return place
        box = legend.get_window_extent(renderer)
        room = (box.x0 + box.x1 - 2 * ax.bbox.x1) / whole.width         # the same gap on both sides
        right = place.x1
        if after := [other for other in ax.figure.axes if other.get_visible()
                     and other.get_position(original=True).x0 >= right]:
            following = min(after, key=lambda other: other.get_position(original=True).x0)
            edge = following.get_tightbbox(renderer).x0
            right = min(right, (edge - whole.x0) / whole.width)
        return Bbox.from_extents(place.x0, place.y0, max(right - room, place.x0 + place.width / 4),
                                 place.y1)


def half_width(level: float) -> float:
    """Standard deviations from the mean to the edge of a central interval."""
    if not 0 < level < 1:
        raise JopaError("the level of a band is out of range", found=level,
                        expected="a probability between 0 and 1", fix="use level=0.9")
    return float(norm.ppf(0.5 + level / 2))


def series_of(source: Any, site: str, variance: Any = None, index: int | tuple | None = None
              ) -> Series:
    """A site's belief over time, first states (`x0`) in front; or given moments as such.

    Args:
        source: a posterior, or means (T, *plates, d) or (T, *plates).
        site: which one, of a posterior.
        variance: of given means, in their shape, or None.
        index: an element of the plates between time and the vector; None: there are none.

    Raises:
        ShapeError: the site is in no scan, there is no such element, or what is left is not (T,) or
            (T, d).
    """
    first = begins = 0
    if isinstance(source, Posterior):
        moments = [np.asarray(source.mean(site)), np.asarray(source.variance(site))]
        heads = {r.back: n for n, r in source.compiled.graph.reader.seeds if r.site == site}
        for back in sorted(heads):              # the nearest first state stands next to x[0]
            moments = [np.concatenate([np.asarray(get(heads[back]))[None], m])
                       for get, m in zip((source.mean, source.variance), moments)]
        if (own := source.compiled.graph.program.sites[site]).scan is None:
            raise ShapeError("no series of vectors", site=site, found="a site outside scans",
                             expected="a site of a scan", fix="plot the site inside the scan")
        # A state of step t holds after it: x[0] is the state when datum 1 is observed.
        begins = own.first
        first = begins + int(roles(source).get(site) == "state") - len(heads)
    else:
        moments = [np.asarray(source)] + ([] if variance is None else [np.asarray(variance)])
    plates = moments[0].shape[1:1 + len(_place(index))]
    if len(plates) < len(_place(index)) or not all(-n <= i < n for i, n in zip(_place(index),
                                                                               plates)):
        raise ShapeError("there is no such element", site=site, found=f"index={index}",
                         expected=f"an element of {moments[0].shape[1:]}",
                         fix="count from 0, plates in the site's order")
    moments = [m[(slice(None), *_place(index))] for m in moments]
    moments = [m[:, None] if m.ndim == 1 else m for m in moments]
    if moments[0].ndim != 2 or moments[0].shape != moments[-1].shape:
        raise ShapeError("no series of vectors", site=site, found=[m.shape for m in moments],
                         expected="(T,) or (T, d), and a variance of the same shape",
                         fix="pick one trajectory with index=")
    steps = first + np.arange(len(moments[0]))
    sd = np.sqrt(moments[1]) if len(moments) > 1 else None
    return Series(steps, moments[0], sd, plates, begins)


def _place(index: int | tuple | None) -> tuple:
    return () if index is None else index if isinstance(index, tuple) else (index,)


def picked(data: Any, index: int | tuple | None, plates: tuple[int, ...], event: int) -> np.ndarray:
    """Data (T, *plates, ..) of the element `index`; (T, ..) with at most `event` axes as they are.

    Args:
        data: with plates or without; index: as of `series_of`.
        plates: their sizes; event: number of axes of a datum.
    """
    data = np.asarray(data)
    whole = data.ndim > 1 + event and data.shape[1:1 + len(plates)] == plates
    return data[(slice(None), *_place(index))] if whole else data
