"""The energy U = E_q[log p]: an expected log-density a factor, a function of moments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.beliefs import Belief
from jopa_ppl.beliefs.layout import join, split
from jopa_ppl.engine.evidence import (
    SYMMETRIC,
    FactorArrays,
    evaluate_in,
    symmetric_or_nan,
    to_precision,
)
from jopa_ppl.engine.likelihoods import score_of
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.linalg.factors import (
    Moments,
    batch_einsum,
    expected_log_density,
    expected_square,
)
from jopa_ppl.linalg.families import (
    Gamma,
    Wishart,
    gamma_divergence,
    gamma_log_density,
    wishart_divergence,
    wishart_log_density,
)
from jopa_ppl.linalg.nonconjugate import Score, curvature, expected_score, remainder


def slots_of(factor: Factor, blocks: tuple[Belief, ...]) -> list[tuple[Belief | None, list[str]]]:
    """The factor's instances by block; the one with the most batch axes last, as the main slot."""
    found = [(b, names) for b in blocks if (names := factor.instances_of(b))]
    own = lambda b: factor.site.name in b.members       # the chain that a site follows from
    found.sort(key=lambda s: (s[0].scan is not None, s[0].scan is not None and own(s[0]),
                              s[0].structured, len(s[0].plates)))
    if not found:
        return [(None, [])]
    last = found[-1][0]
    if last.scan is None and not factor.approximate and (
            factor.knowns or factor.in_bulk or (factor.plates and not last.plates)):
        # Only data differ along the batch: let them be the main slot, so that their second moments
        # are summed once and the latents see no batch axis.
        return [*found, (None, [])]
    return found


def _independent(precision: Array, arrays: FactorArrays) -> bool:
    """Whether a precision is one of every element, no matrix."""
    return precision.ndim == arrays.offset.ndim


class Energy:
    """U of a graph and its factors' parts, for given arrays."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.slots = {f.name: slots_of(f, graph.blocks) for f in graph.factors}

    def touching(self, block: Belief) -> list[Factor]:
        """The factors whose energy depends on a block."""
        return [f for f in self.graph.factors if block in self.blocks_of(f)]

    def blocks_of(self, factor: Factor) -> list[Belief]:
        """Beliefs a factor depends on, precisions included."""
        blocks = [b for b, _ in self.slots[factor.name] if b is not None]
        names = [*factor.noise, *([factor.site.name] if factor.family in ("gamma", "wishart")
                                  and not factor.site.observed else [])]
        return blocks + [self.graph.block_of(n) for n in names]

    def __call__(self, factors: list[Factor], arrays: dict[str, FactorArrays],
                 stats: dict[str, Any], remainders: dict[str, Array] | None = None) -> Array:
        """sum of E_q[log factor] over the given factors; with the `remainders` of the messages that
        approximate, the function whose gradient they are."""
        held = remainders or {}
        return sum((self.factor(f, arrays[f.name], stats, held.get(f.name)) for f in factors),
                   jnp.zeros(()))

    def remainders(self, factors: list[Factor], arrays: dict[str, FactorArrays],
                   stats: dict[str, Any]) -> dict[str, Array]:
        """By factor whose message approximates, `remainder` at the present beliefs."""
        return {f.name: remainder(*self._message(f, arrays[f.name], stats), f.message)
                for f in factors if f.approximate}

    def factor(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any],
               held: Array | None = None) -> Array:
        """E_q[log f] of one factor, all normalisers included (and less <`held`, S> / 2)."""
        if factor.family == "gamma":
            return self._gamma(factor, arrays, stats)
        if factor.family == "wishart":
            return self._wishart(factor, arrays, stats)
        if factor.approximate:
            score, view = self._message(factor, arrays, stats)
            if held is None and factor.message == "linearise":
                held = curvature(score, view, factor.message)   # the mean alone sees no spread
            value = expected_score(score, view, factor.message)
            return value if held is None else value - 0.5 * jnp.sum(held * view.cov)
        square, count, precision, logdet = self.parts(factor, arrays, stats)
        return expected_log_density(square, count, precision, logdet,
                                    _independent(precision, arrays))

    def _message(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]
                 ) -> tuple[Score, Moments]:
        """What a message that approximates is made of; networks learn nothing from it."""
        score = self.score(factor, jax.lax.stop_gradient(arrays))
        return score, self.view(factor, arrays, stats)

    def view(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]) -> Moments:
        """The moments of the latents that a likelihood depends on."""
        (block, _), = self.slots[factor.name]
        if block is None:
            batch = (1,) * (arrays.offset.ndim - 1)
            return Moments(jnp.zeros((*batch, 0)), jnp.zeros((*batch, 0, 0)))
        return block.view(stats[block.name], factor)

    def score(self, factor: Factor, arrays: FactorArrays) -> Score:
        """The likelihood of an observed site, as its program scores it."""
        return score_of(self.graph, factor, self.slots[factor.name][-1][1], arrays)

    def parts(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]
              ) -> tuple[Array, Array, Array, Array]:
        """Summed E[r r'], summed weights, E[P] and E[log P] of a Gaussian factor."""
        precision, logdet = self.noise(factor, arrays, stats)
        diagonal = _independent(precision, arrays)
        tails = 1 if diagonal else 2
        keep = [n > 1 for n in precision.shape[:precision.ndim - tails]]
        square = self.square(factor, arrays, stats, keep, diagonal)
        count = batch_einsum([(arrays.weight, "n")], "n", keep)
        return square, count, precision, logdet

    def square(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any],
               keep: list[bool], diagonal: bool) -> Array:
        """Weighted E[r r'] (or its diagonal), summed over the batch axes that are not kept."""
        views = [b.view(stats[b.name], factor)
                 for b, _ in self.slots[factor.name] if b is not None]
        batch = arrays.offset.shape[:-1]
        one = (1,) * len(batch)
        if self.slots[factor.name][-1][0] is None:
            *slots, main = *views, Moments(jnp.zeros((*one, 0)), jnp.zeros((*one, 0, 0)))
        else:
            *slots, main = views
        return expected_square(arrays.K, arrays.offset, arrays.weight, slots, main,
                               arrays.known, keep, diagonal)

    def noise(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]
              ) -> tuple[Array, Array]:
        """E[P] and E[log P] (or E[log|P|]), batch axes in front (size 1 for time)."""
        if not factor.noise:
            return arrays.precision, arrays.logdet
        mean, log = self._monomial(factor, arrays, stats, factor.noise_key)
        return mean, log

    def _monomial(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any], key: str
                  ) -> tuple[Array, Array]:
        """E and E[log] of a precision (or rate) that is a product of data and precisions.

        It is linear in each latent and its log is affine in their logs, so both expectations are
        exact: at the means, and by the tangent of the log at 1 (which cannot under- or overflow).
        """
        sites = self.graph.program.sites
        output = [factor.site.outputs[key]]
        means = {n: stats[self.graph.block_of(n).name][0] for n in factor.noise}
        logs = {n: stats[self.graph.block_of(n).name][1] for n in factor.noise}

        def at(values: dict[str, Array]) -> tuple[Array, Array]:
            def one(step: Array | int) -> tuple[Array, Array]:
                (found,) = evaluate_in(self.graph.reader, factor, arrays.env, output, values, step)
                if factor.family == "gamma":
                    rate = split(jnp.broadcast_to(found, factor.site.shape), factor.site,
                                 factor.plates)
                    return rate, jnp.log(rate)
                return to_precision(factor, found)
            if not factor.in_bulk:
                return one(0)
            if not factor.noise_varying:
                first, second = one(0)
                return first[None], second[None]
            return jax.vmap(one)(jnp.arange(arrays.offset.shape[0]))

        def log_at(shifts: dict[str, Array]) -> Array:
            values = {}
            for n, shift in shifts.items():
                if sites[n].family == "wishart":
                    size = sites[n].shape[-1]
                    values[n] = jnp.exp(shift / size)[..., None, None] * jnp.eye(size)
                else:
                    values[n] = jnp.exp(shift)
            return at(values)[1]

        zero = {n: jnp.zeros_like(v) for n, v in logs.items()}
        base, slope = jax.jvp(log_at, (zero,), (logs,))
        return at(means)[0], base + slope

    @staticmethod
    def is_noise_prior(factor: Factor) -> bool:
        """Whether it is the prior of a precision."""
        return factor.family in ("gamma", "wishart") and not factor.site.observed

    def divergence(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any],
                   belief: Gamma | Wishart) -> Array:
        """-E_q[log f] - entropy of a precision's belief: KL(q || f) where f has weight one."""
        if factor.family == "gamma":
            prior, site = self._gamma_prior(factor, arrays, stats), factor.site
            belief = Gamma(*(split(x, site, factor.plates) for x in belief))
            found, weight = gamma_divergence(belief, *prior), arrays.weight
            density = gamma_log_density(*prior, belief.mean, belief.log)
        else:
            prior = arrays.K, self.wishart_rate(factor, arrays)
            weight = self._each(factor, arrays)
            found = wishart_divergence(belief, *prior)
            density = wishart_log_density(*prior, belief.mean, belief.log)
        return jnp.sum(found + (1 - weight) * density)

    def _gamma_prior(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]
                     ) -> tuple[Array, Array, Array]:
        """Shape, E[rate] and E[log rate], split by plates."""
        site = factor.site
        shape = split(arrays.K, site, factor.plates)
        if factor.noise:
            return shape, *self._monomial(factor, arrays, stats, "rate")
        (rate,) = evaluate_in(self.graph.reader, factor, arrays.env, [site.outputs["rate"]], {}, 0)
        rate = split(rate, site, factor.plates)
        return shape, rate, jnp.log(rate)

    def _gamma(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]) -> Array:
        site = factor.site
        shape, rate, log_rate = self._gamma_prior(factor, arrays, stats)
        if site.observed:
            mean, log = arrays.offset, jnp.log(arrays.offset)
            if factor.in_bulk:
                shape = shape[None]
                if rate.ndim < mean.ndim:
                    rate, log_rate = rate[None], log_rate[None]
        else:
            mean, log = (split(s, site, factor.plates) for s in stats[site.name])
        return jnp.sum(arrays.weight * gamma_log_density(shape, rate, log_rate, mean, log))

    def _wishart(self, factor: Factor, arrays: FactorArrays, stats: dict[str, Any]) -> Array:
        site = factor.site
        if site.observed:
            mean = join(arrays.offset, site, factor.plates, int(factor.in_bulk))
            log = 2 * jnp.log(jnp.diagonal(jnp.linalg.cholesky(mean), axis1=-2, axis2=-1)).sum(-1)
        else:
            mean, log = stats[site.name]
        rate = self.wishart_rate(factor, arrays)
        return jnp.sum(self._each(factor, arrays)
                       * wishart_log_density(arrays.K, rate, mean, log))

    @staticmethod
    def _each(factor: Factor, arrays: FactorArrays) -> Array:
        """The weight of every matrix of a Wishart site, where the site has its batch axes."""
        site, axes, lead = factor.site, [p.axis for p in factor.plates], int(factor.in_bulk)
        weight = arrays.weight[..., 0]
        weight = weight.reshape((*weight.shape, *(1,) * (len(site.shape) - 2 - len(axes))))
        return jnp.moveaxis(weight, range(lead, lead + len(axes)), [lead + a for a in axes])

    def wishart_rate(self, factor: Factor, arrays: FactorArrays) -> Array:
        """The rate matrix of a Wishart site, whichever way it was given."""
        (matrix,) = evaluate_in(self.graph.reader, factor, arrays.env,
                                [factor.site.outputs[factor.noise_key]], {}, 0)
        if factor.noise_key in SYMMETRIC:
            matrix = symmetric_or_nan(matrix)
        if factor.noise_key == "rate_matrix":
            return matrix
        chol = matrix if factor.noise_key == "scale_tril" else jnp.linalg.cholesky(matrix)
        eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
        white = jax.scipy.linalg.solve_triangular(chol, eye, lower=True)
        return jnp.swapaxes(white, -1, -2) @ white
