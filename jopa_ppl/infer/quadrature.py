"""Few parameters integrated over by quadrature, all else exact given them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from jax import Array, lax, random
from jax.flatten_util import ravel_pytree
from numpyro.infer.util import constrain_fn, potential_energy, unconstrain_fn

from jopa_ppl.descent import descended
from jopa_ppl.errors import NumericalError, SiteError, StructureError, names
from jopa_ppl.language.keys import as_key
from jopa_ppl.posterior.labels import elementwise, in_columns
from jopa_ppl.settings import ours

MOST = 3                        # numbers that a product of points goes over
STEPS = (0.4, 0.5, 0.7)         # between points, in spreads at the mode, of one to three numbers
TAIL = 20.0                     # nats below the mode where an axis ends
EDGE = 1e-7                     # share of the mass at the ends of the grid, at most
LONGEST = 200                   # points on an axis to one side
LIGHT = 1e-10                   # shares of points that are left out
TOGETHER = 64                   # points that are computed side by side
STILL, DESCENT = 1e-6, 200      # steps towards the mode, in spreads, that are none; and how many


@dataclass(frozen=True, eq=False, repr=False)
class Quadrature:
    """A posterior as a mixture over points of its few parameters (`Marginalised.quadrature`).

    Attributes:
        log_evidence: log p(data), nats.
        error: by how much it differs from that of every second point of each axis, nats: more than
            what it is off by, where the posterior is smooth and has one mode.
        points: by parameter, its values, (m, *site shape). weights: of the points, (m,); sum 1.
    """

    log_evidence: float
    error: float
    points: dict[str, np.ndarray]
    weights: np.ndarray
    _inner: tuple[str, ...]
    _moments: Callable[[], dict[str, tuple[Array, Array]]]
    _draw: Callable[[Array, dict[str, Array]], Mapping[str, Array]]

    @property
    def sites(self) -> tuple[str, ...]:
        """The parameters, and what was integrated out exactly."""
        return (*self.points, *self._inner)

    def mean(self, site: str) -> np.ndarray:
        """E[x | data], in the site's shape; time in front.

        Raises:
            SiteError: `site` is none of `sites`.
        """
        return self._of(site)[0]

    def variance(self, site: str) -> np.ndarray:
        """The variance of every element of x given the data. Raises: as `mean`."""
        return self._of(site)[1]

    def sample(self, rng_key: Array | int, sample_shape: tuple[int, ...] | int = ()
               ) -> dict[str, Array]:
        """Joint draws, {name: (*sample_shape, *site shape)}: of the points, and of all else given
        these; a key or a seed."""
        shape = (sample_shape,) if isinstance(sample_shape, int) else tuple(sample_shape)
        with ours():
            which, back = random.split(as_key(rng_key))
            count = int(np.prod(shape, dtype=int))
            at = random.choice(which, len(self.weights), (count,), p=jnp.asarray(self.weights))
            values = {n: jnp.asarray(x)[at] for n, x in self.points.items()}
            found = values | dict(self._draw(random.split(back, count), values))
            found = {n: np.asarray(x).reshape((*shape, *jnp.shape(x)[1:]))
                     for n, x in found.items()}
        return {n: jnp.asarray(x) for n, x in found.items()}

    def summary(self) -> str:
        """A table of the parameters, elementwise: mean and standard deviation; and the evidence."""
        rows = [("site", "mean", "sd")]
        for name in self.points:
            mean, sd = np.asarray(self.mean(name)), np.sqrt(np.asarray(self.variance(name)))
            rows += elementwise(name, mean, sd)
        return "\n".join([in_columns(rows), f"log evidence {self.log_evidence:.6g} nats, "
                                                    f"{len(self.weights)} points"])

    def __repr__(self) -> str:
        return f"Quadrature(sites={list(self.sites)}, log_evidence={self.log_evidence:.6g})"

    def _of(self, site: str) -> tuple[np.ndarray, np.ndarray]:
        if site not in self.sites:
            raise SiteError("unknown site", site=site, found=f"'{site}'",
                            expected=f"one of {names(self.sites)}",
                            fix="other sites follow from draws: `sample`")
        if site in self.points:
            return _mixed(self.weights, self.points[site], np.zeros(()))
        return _mixed(self.weights, *self._exact[site])

    @cached_property
    def _exact(self) -> dict[str, tuple[Array, Array]]:
        """Mean and variance of what is exact, at every point."""
        return self._moments()


def _mixed(weights: np.ndarray, means: Array, variances: Array
           ) -> tuple[np.ndarray, np.ndarray]:
    """The mean and variance of a mixture, from those of its parts, (m, ..)."""
    means = np.asarray(means)
    w = np.asarray(weights).reshape((-1, *(1,) * (means.ndim - 1)))
    mean = (w * means).sum(0)
    return mean, (w * ((means - mean)**2 + np.asarray(variances))).sum(0)


def integrated(rest: Callable, model: Callable, args: tuple, kwargs: dict, mean: dict[str, Array],
               covariance: Array | None) -> tuple[float, float, dict[str, np.ndarray], np.ndarray]:
    """The density of what is left, exp(-potential) in unconstrained space, summed over a product of
    points about its mode: log of the sum, how far every second point is off, the points, and their
    weights.

    Args:
        rest: the program without what is integrated out; model: one with the same priors.
        mean, covariance: of a belief, to start from; the covariance in unconstrained space, None
            where no more is known than a mean.

    Raises:
        StructureError: there are more than three numbers. NumericalError: the density has no mode,
            or does not end within reach of it.
    """
    inside = partial(unconstrain_fn, numpyro.handlers.seed(model, 0), args, kwargs)
    outside = partial(constrain_fn, numpyro.handlers.seed(model, 0), args, kwargs)
    middle, shape = ravel_pytree(inside(mean))
    n = len(middle)
    if n > MOST:
        raise StructureError(
            "there are too many parameters for quadrature", found=f"{n} numbers in "
            f"{names(tuple(mean))}", expected=f"at most {MOST} that are not integrated out",
            fix="sample them: MCMC(NUTS(rest, **rest.start(..)))")
    potential = partial(potential_energy, numpyro.handlers.seed(rest, 0), args, kwargs)
    log_density = lambda u: -potential(shape(u))
    root = jnp.eye(n) if covariance is None else jnp.linalg.cholesky(covariance)
    mode = _mode(lambda w: log_density(middle + root @ w), n)
    middle = middle + root @ mode
    slope = jax.jit(jax.vmap(jax.grad(lambda w, root: log_density(middle + root @ w)), (0, None)))
    for _ in range(3):                          # differences want a step of the size of a spread
        root = root @ _spreads(lambda w, root=root: slope(w, root), n)
    each = jax.jit(lambda at: lax.map(lambda w: log_density(middle + root @ w), at,
                                      batch_size=TOGETHER))
    step = STEPS[n - 1]
    grid, found = _grid(lambda at: np.asarray(each(jnp.asarray(at))), n, step)
    volume = np.linalg.slogdet(np.asarray(root))[1]
    log_sum = lambda x, step: float(jax.scipy.special.logsumexp(x) + n * np.log(step) + volume)
    even = (np.round(grid / step) % 2 == 0).all(1)
    total, coarse = log_sum(found, step), log_sum(found[even], 2 * step)
    share = np.exp(found - found.max())
    kept = share > LIGHT * share.sum()
    weights = share[kept] / share[kept].sum()
    points = jax.jit(jax.vmap(lambda w: outside(shape(middle + root @ w))))(grid[kept])
    return total, abs(total - coarse), {k: np.asarray(points[k]) for k in mean}, weights


def _mode(fn: Callable[[Array], Array], n: int) -> Array:
    """Where fn (n,) -> () is largest, from 0."""
    optimiser, loss = optax.lbfgs(), lambda w: -fn(w)

    def down(carry: tuple) -> tuple:
        w, state, _, count = carry
        new, state, _ = descended(optimiser, loss, w, state)
        return new, state, jnp.abs(new - w).max(), count + 1

    start = jnp.zeros(n)
    w, *_ = jax.jit(lambda w: lax.while_loop(
        lambda c: (c[2] > STILL) & (c[3] < DESCENT), down,
        (w, optimiser.init(w), jnp.full((), jnp.inf), 0)))(start)
    if not jnp.isfinite(fn(w)):
        raise NumericalError("the density of the parameters is not finite",
                             found="no finite value at the means of jp.VMP",
                             expected="a density with a mode", fix="check the priors and the data")
    return w


def _spreads(slope: Callable[[Array], Array], n: int) -> Array:
    """A square root of the inverse of minus the curvature at 0, by differences of slopes, within a
    factor of 10 of 1."""
    eye = 0.1 * jnp.eye(n)
    ends = slope(jnp.concatenate([eye, -eye]))
    bend = (ends[n:] - ends[:n]) / 0.2
    values, vectors = jnp.linalg.eigh(0.5 * (bend + bend.T))
    return vectors / jnp.sqrt(jnp.clip(values, 0.01, 100.0))


def _grid(each: Callable[[np.ndarray], np.ndarray], n: int, step: float
          ) -> tuple[np.ndarray, np.ndarray]:
    """Points (m, n) of a product about 0, as wide as the density is, and its logarithm at them."""
    eye, top = np.eye(n), each(np.zeros((1, n)))[0]
    ends = np.zeros((n, 2), int)
    for axis in range(n):
        for side, sign in enumerate((-1, 1)):
            line = np.arange(1, LONGEST + 1)
            for block in np.split(line, 10):        # a few at a time: most axes are short
                values = each(sign * step * block[:, None] * eye[axis])
                low = ~(values > top - TAIL)
                ends[axis, side] = block[int(np.argmax(low))] if low.any() else block[-1]
                if low.any():
                    break
    while True:
        axes = [step * np.arange(-low, high + 1) for low, high in ends]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape((-1, n))
        found = np.where(np.isfinite(values := each(grid)), values, -np.inf)
        share = np.exp(found - found.max()).reshape([len(a) for a in axes])
        share /= share.sum()
        heavy = np.array([[np.take(share, i, axis).sum() > EDGE for i in (0, -1)]
                          for axis in range(n)])
        if not heavy.any():
            return grid, found
        if (ends[heavy] >= LONGEST).any():
            raise NumericalError(
                "the density of the parameters does not end", found="mass "
                f"{LONGEST * step:.0f} spreads away from its mode", expected="a proper posterior "
                "with one mode", fix="check the priors, or sample: MCMC(NUTS(rest))")
        ends = np.minimum(ends + np.where(heavy, np.maximum(4, ends // 4), 0), LONGEST)
