"""Eigenvalues of learned dynamics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jopa_ppl.colours import BLUE, RED, SKY
from jopa_ppl.errors import ShapeError
from jopa_ppl.language.keys import as_key
from jopa_ppl.plots.style import axes_of, legend_beside, tidy
from jopa_ppl.posterior.posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def eigenvalues(source: Posterior | ArrayLike, site: str = "A", *, draws: int = 400,
                rng_key: Array | int | None = None, truth: ArrayLike | None = None,
                label: str | None = None, ax: Axes | None = None) -> Axes:
    """Eigenvalues in the unit circle: of the mean matrix, and a cloud of posterior draws.

    Inside the circle motion dies out, on it it goes on, outside it grows; the angle is that turned
    in one step.

    Args:
        source: a posterior, or matrices: one (d, d) or draws of it (S, d, d).
        site: the square site.
        draws: how many draws make the cloud.
        truth: matrix (d, d) whose eigenvalues are drawn as crosses.
        label: name in the legend of the mean's eigenvalues.

    Raises:
        ShapeError: the matrices are not square.
    """
    if isinstance(source, Posterior):
        key = as_key(rng_key)
        mean = np.asarray(source.mean(site))
        cloud = np.asarray(source[site].sample(key, (draws,)))
    else:
        cloud = np.asarray(source)
        mean = cloud if cloud.ndim == 2 else cloud.mean(0)
    if mean.ndim != 2 or mean.shape[0] != mean.shape[1]:
        raise ShapeError("no square matrix", site=site, found=cloud.shape,
                         expected="(d, d), or draws (S, d, d)",
                         fix="name the site of the state's own dynamics")
    ax = tidy(axes_of(ax, (4.2, 4.2)))
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 1441))
    points = np.concatenate([np.linalg.eigvals(m).ravel() for m in (mean, cloud, truth)
                             if m is not None])

    def draw(ax: Axes) -> None:
        ax.plot(circle.real, circle.imag, color="0.55", lw=1)
        if cloud.ndim == 3:
            e = np.linalg.eigvals(cloud).ravel()
            ax.plot(e.real, e.imag, ".", color=SKY, ms=4, alpha=0.5, mew=0, zorder=2,
                    label=f"{len(cloud)} draws")
        e = np.linalg.eigvals(mean)
        ax.plot(e.real, e.imag, "o", color=BLUE, ms=6, mew=0, zorder=4, label=label or "mean")
        if truth is not None:
            e = np.linalg.eigvals(np.asarray(truth))
            ax.plot(e.real, e.imag, "x", color=RED, ms=8, mew=2, zorder=5, label="truth")

    draw(ax)
    reach = 1.1 * max(1.0, np.abs(points.real).max(), np.abs(points.imag).max())
    ax.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach), xlabel="real part",
           ylabel="imaginary part", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    spans = [np.ptp(points.real), np.ptp(points.imag)]
    if max(spans) < 0.4:                  # all in one place: show it from nearby too
        near = ax.inset_axes((0.22, 0.3, 0.42, 0.42))
        draw(near)
        half = 0.6 * max(*spans, 0.02)
        middle = [(v.max() + v.min()) / 2 for v in (points.real, points.imag)]
        near.set(aspect="equal", xlim=(middle[0] - half, middle[0] + half),
                 ylim=(middle[1] - half, middle[1] + half))
        near.tick_params(labelsize=7)
        ax.indicate_inset_zoom(near, edgecolor="0.4")
    # A dot of the legend within the circle would be taken for an eigenvalue.
    legend = legend_beside(ax, markerscale=1.2)
    for handle in legend.legend_handles:
        handle.set_alpha(1)                # one faint dot of a cloud is not to be seen
    return ax
