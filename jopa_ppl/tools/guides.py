"""A guide for SVI that knows a program's chains: Gauss-Markov in time, one Gaussian elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array, lax, random
from jax.scipy.linalg import solve_triangular
from numpyro.distributions import Distribution, constraints
from numpyro.infer.autoguide import AutoContinuous
from numpyro.infer.initialization import init_to_mean

from jopa_ppl.beliefs import ChainBelief
from jopa_ppl.graph.factor import Graph

LOG_2PI = float(np.log(2 * np.pi))


class Rest(NamedTuple):
    """What is in no chain, R coordinates: places in the flat vector (R,), mean (R,), a Cholesky
    factor of their covariance (R, R)."""

    index: Array
    loc: Array
    tril: Array


class Link(NamedTuple):
    """One chain of G groups of D coordinates, see `GaussMarkov`: places in the flat vector, -1
    where a group is padded (G, *plates, D); loc (G, *plates, D); back (G-1, *plates, D, D); tril
    (G, *plates, D, D); gain (G, *plates, D, R), or None."""

    index: Array
    loc: Array
    back: Array
    tril: Array
    gain: Array | None

    def masked(self) -> tuple[Array, Link]:
        """1 where a coordinate is real, and the parameters without what is padding."""
        free = (self.index >= 0).astype(self.loc.dtype)
        pair = free[..., :, None] * free[..., None, :]
        eye = (1 - free)[..., None] * jnp.eye(free.shape[-1], dtype=free.dtype)
        return free, self._replace(
            loc=free * self.loc, tril=pair * jnp.tril(self.tril) + eye,
            back=free[1:, ..., :, None] * free[:-1, ..., None, :] * self.back,
            gain=None if self.gain is None else free[..., None] * self.gain)


class GaussMarkov(Distribution):
    """A Gaussian over a flat vector: chains z_0, z_1, .. and a rest g.

        g ~ N(m_g, L_g L_g')
        z_t - m_t | z_t-1, g ~ N(F_t (z_t-1 - m_t-1) + H_t (g - m_g), L_t L_t')

    It holds the exact posterior of every linear Gaussian chain, and with H one that is not
    mean-field between states and parameters.

    `log_prob` is differentiated in the value only, not in the parameters: with draws that carry
    their gradient the ELBO's gradient stays unbiased and its noise vanishes where q is exact.

    Source: Archer et al. 2015, "Black box variational inference for state space models" (blocks);
    Roeder, Wu & Duvenaud 2017, "Sticking the landing" (gradient).
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.real_vector
    reparametrized_params = ("rest", "links")
    pytree_data_fields = ("rest", "links")
    pytree_aux_fields = ("size",)

    def __init__(self, rest: Rest, links: tuple[Link, ...], size: int) -> None:
        self.rest, self.links, self.size = rest, links, size
        super().__init__((), (size,), validate_args=False)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        dtype = self.rest.loc.dtype
        eps = random.normal(key, (*sample_shape, *self.rest.loc.shape), dtype)
        gap = eps @ jnp.tril(self.rest.tril).T
        flat = jnp.zeros((*sample_shape, self.size), dtype)
        flat = flat.at[..., self.rest.index].set(self.rest.loc + gap)
        for i, link in enumerate(self.links):
            free, p = link.masked()
            eps = free * random.normal(random.fold_in(key, i), (*sample_shape, *free.shape), dtype)
            push = jnp.einsum("...ij,...j->...i", p.tril, eps)
            if p.gain is not None:
                push = push + _drive(p.gain, gap)
            push = jnp.moveaxis(push, len(sample_shape), 0)

            def step(z: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
                push, back = inputs
                z = push + jnp.einsum("...ij,...j->...i", back, z)
                return z, z

            _, later = lax.scan(step, push[0], (push[1:], p.back))
            z = jnp.moveaxis(jnp.concatenate([push[:1], later]), 0, len(sample_shape))
            place = jnp.where(link.index >= 0, link.index, self.size)
            flat = flat.at[..., place].set(p.loc + z, mode="drop")
        return flat

    def log_prob(self, value: Array) -> Array:
        rest, links = lax.stop_gradient((self.rest, self.links))
        gap = value[..., rest.index] - rest.loc
        total = _standard(jnp.tril(rest.tril), gap, jnp.ones_like(rest.loc), 1)
        for link in links:
            free, p = link.masked()
            z = (value[..., link.index] - p.loc) * free
            axis = z.ndim - free.ndim
            before = lax.slice_in_dim(z, 0, z.shape[axis] - 1, axis=axis)
            drift = jnp.einsum("...ij,...j->...i", p.back, before)
            start = jnp.zeros_like(lax.slice_in_dim(z, 0, 1, axis=axis))
            noise = z - jnp.concatenate([start, drift], axis)
            if p.gain is not None:
                noise = noise - _drive(p.gain, gap)
            total += _standard(p.tril, noise, free, free.ndim)
        return total


def _drive(gain: Array, gap: Array) -> Array:
    """H g: (G, *plates, D, R) and (*draws, R) -> (*draws, G, *plates, D)."""
    return jnp.tensordot(gap, jnp.moveaxis(gain, -1, 0), 1)


def _standard(tril: Array, gap: Array, free: Array, axes: int) -> Array:
    """log N(gap; 0, tril tril') over the last axes, counting coordinates that are free."""
    tril = jnp.broadcast_to(tril, (*gap.shape, gap.shape[-1]))
    white = solve_triangular(tril, gap[..., None], lower=True)[..., 0] * free
    logdet = jnp.log(jnp.abs(jnp.diagonal(tril, axis1=-2, axis2=-1))) * free
    return jnp.sum(-0.5 * white**2 - logdet - 0.5 * LOG_2PI * free, range(-axes, 0))


class AutoGaussMarkov(AutoContinuous):
    """A NumPyro autoguide with the structure of the program's posterior in time.

    The latents of every chain block of `graph` are Gauss-Markov; all others share one Gaussian of
    full covariance on unconstrained space. See `GaussMarkov`.

    Args:
        model: the program.
        graph: `jp.compile(model, *args, **kwargs).graph`.
        coupled: let the means of the chains depend linearly on the other latents.
        init_loc_fn, init_scale, prefix: as in NumPyro's autoguides.
    """

    def __init__(self, model: Callable, graph: Graph, *, coupled: bool = False,
                 prefix: str = "auto", init_loc_fn: Callable = init_to_mean,
                 init_scale: float = 0.1) -> None:
        self.graph, self.coupled, self.init_scale = graph, coupled, init_scale
        super().__init__(model, prefix=prefix, init_loc_fn=init_loc_fn)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        places, at = {}, 0
        for name, value in self._init_locs.items():
            places[name] = at + np.arange(np.size(value)).reshape(np.shape(value))
            at += np.size(value)
        self._chains = [_places(b, places) for b in self.graph.blocks
                        if b.scan is not None]
        taken = np.concatenate([np.ravel(c) for c in self._chains]) if self._chains else []
        self._rest = np.setdiff1d(np.arange(at), taken)

    def _get_posterior(self) -> GaussMarkov:
        init = self._init_latent
        dtype = init.dtype

        def param(name: str, value: Array) -> Array:
            return numpyro.param(f"{self.prefix}_{name}", value)

        R = len(self._rest)
        rest = Rest(self._rest, param("loc", init[self._rest]), _cholesky(
            param("tril", jnp.zeros((R, R), dtype)), self.init_scale))
        links = []
        for i, index in enumerate(self._chains):
            shape, D = index.shape, index.shape[-1]
            tril = _cholesky(param(f"chain{i}_tril", jnp.zeros((*shape, D), dtype)),
                             self.init_scale)
            back = param(f"chain{i}_back", jnp.zeros((shape[0] - 1, *shape[1:], D), dtype))
            gain = param(f"chain{i}_gain", jnp.zeros((*shape, R), dtype)) if self.coupled else None
            links.append(Link(index, param(f"chain{i}_loc", init[index]), back, tril, gain))
        return GaussMarkov(rest, tuple(links), self.latent_dim)


def _cholesky(raw: Array, scale: float) -> Array:
    """A lower triangle with a positive diagonal, scale * I at raw = 0."""
    diagonal = scale * jnp.exp(jnp.diagonal(raw, axis1=-2, axis2=-1))
    return scale * jnp.tril(raw, -1) + diagonal[..., None] * jnp.eye(raw.shape[-1], dtype=raw.dtype)


def _places(block: ChainBelief, places: dict[str, np.ndarray]) -> np.ndarray:
    """Where the coordinates of a chain's groups lie in the flat vector, -1 where padded."""
    parts = {}
    for name, v in block.latents.items():
        length = (block.length,) if v.is_series else ()
        own = places.get(name, np.full((*length, *v.site.shape), -1))     # data to NumPyro
        parts[name] = v.vectors(jnp.asarray(own + 1))
    return np.asarray(jax.device_get(block.vector(parts))).astype(int) - 1
