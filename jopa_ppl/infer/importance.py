"""Corrections of a mean-field posterior by importance weights, with a diagnosis of the weights.

Mean field cuts the dependence between states and parameters, which makes beliefs about parameters
too narrow. `correct` draws parameters from a widened belief, solves the states given each draw
exactly (one chain, one sweep), and weighs the draw by its exact evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from jopa_ppl.beliefs import Belief
from jopa_ppl.compilation import in_batches, often
from jopa_ppl.engine.compiled import Compiled
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.signature import split_call
from jopa_ppl.errors import JopaError, StructureError, names, whole, within
from jopa_ppl.infer.vmp import VMP
from jopa_ppl.language.keys import as_key
from jopa_ppl.language.query import condition
from jopa_ppl.language.tracing import tracing
from jopa_ppl.posterior import density, draws
from jopa_ppl.posterior.inferred import outward
from jopa_ppl.posterior.posterior import Posterior
from jopa_ppl.settings import ours

LEAST = 25          # weights of which a fifth is a tail that has a shape


@dataclass(frozen=True)
class Corrected:
    """Weighted joint draws.

    Attributes:
        draws: {site: (num_samples, *site shape)}; weights: (num_samples,), sum 1, Pareto-smoothed.
        pareto_k: shape of the weights' tail. Below 0.7 the weighted draws can be trusted; above,
            q is too far from the posterior (Vehtari et al. 2024).
        ess: effective number of draws, 1 / sum w^2.
        log_evidence: estimate of log p(y), nats.
    """

    draws: dict[str, Array] = field(repr=False)
    weights: np.ndarray = field(repr=False)
    pareto_k: float
    ess: float
    log_evidence: float

    def resample(self, rng_key: Array | int, count: int) -> dict[str, Array]:
        """Draws of equal weight, with replacement: {site: (count, *site shape)}."""
        shares = jnp.asarray(self.weights)
        picked = random.choice(as_key(rng_key), len(shares), (count,), p=shares)
        return {n: x[picked] for n, x in self.draws.items()}


def psis(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Pareto-smoothed weights (sum 1) and the tail's shape k, by ArviZ 0.x or 1.x.

    Of fewer than 25 weights, whose tail has no five, they come back as they are, and k is infinite;
    where all of the tail are alike there is nothing to smooth, and k is 0.

    Source: Vehtari, Simpson, Gelman, Yao & Gabry 2024, "Pareto smoothed importance sampling".
    """
    log_weights = np.asarray(log_weights, float)
    size = np.ceil(min(len(log_weights) / 5, 3 * len(log_weights)**0.5))    # as both versions do
    tail = np.sort(log_weights)[-int(size):]
    if len(log_weights) < LEAST or np.ptp(tail) == 0:
        weights = np.exp(log_weights - np.max(log_weights))
        return weights / weights.sum(), np.inf if len(log_weights) < LEAST else 0.0
    import arviz  # with Matplotlib: slow, and for this alone
    if int(arviz.__version__.split(".")[0]) >= 1:
        from arviz_stats.base import array_stats
        smoothed, k = array_stats.psislw(-log_weights)      # it takes log-likelihoods, for LOO
    else:
        smoothed, k = arviz.psislw(log_weights)
    weights = np.exp(smoothed - np.max(smoothed))
    return weights / weights.sum(), float(k)


def correct(posterior: Posterior, num_samples: int = 1000, *, temper: float = 0.5,
            rng_key: Array | int | None = None) -> Corrected:
    """Draws from the exact posterior, by importance sampling over all but one Gaussian block.

        theta ~ q(theta)^temper (normalised),   z ~ p(z | theta, y),
        w = p(y, theta) / q(theta)^temper

    z is the chain (or the one joint block) that remains when the other sites are data: its
    smoothed draws and p(y, theta) are exact, so weights vary over the parameters alone.

    Args:
        temper: in (0, 1]; below 1 the proposal is wider than q by 1 / sqrt(temper) in sd.
        rng_key: default a fixed key.

    Raises:
        StructureError: given the parameters more than one block is left, or the observations send
            approximate messages; use `Posterior.log_prob` and NumPyro's `log_density` instead.

    Source: Chopin, Jacob & Papaspiliopoulos 2013 (weights with states integrated out).
    """
    whole("jp.correct", num_samples=num_samples)
    within("jp.correct", 0, np.inf, temper=temper)
    if not 0 < temper <= 1:
        raise JopaError("an option is out of range", found=f"temper={temper}",
                        expected="0 < temper <= 1", fix="leave it at 0.5")
    graph = posterior.compiled.graph
    chains = [b for b in graph.blocks if b.structured]
    inner = chains[0] if len(chains) == 1 else None
    if inner is None or posterior.plan is not None or any(f.message != "exact"
                                                          for f in graph.factors):
        raise StructureError(
            "the posterior cannot be corrected exactly", found="blocks "
            + names(b.name for b in graph.blocks), expected="one chain, exact messages, no plan",
            fix="weigh joint draws by posterior.log_prob and numpyro's log_density")
    key = as_key(rng_key)
    with ours():
        call, engine = posterior.call, posterior.compiled.engine
        outer = [b for b in graph.blocks if b is not inner]
        bound = posterior.bound
        wide = {b.name: b.temper(posterior.state.moments[b.name], temper, bound.clamps[b.name])
                for b in outer}
        moments = {**posterior.state.moments, **wide}
        model, args, kwargs = call.program()
        one = draws.draw_parameters(engine, moments, key, bound)[1]
        theta = [n for b in outer for n in b.members]
        exact = VMP(condition(model, {n: one[n] for n in theta})).unchecked(args, kwargs)[0]
        if len(exact.graph.blocks) != 1:
            raise StructureError("more than one block is left given the parameters",
                                 found=names(b.name for b in exact.graph.blocks), expected="one")
        with tracing():
            weigh = exact.stage("weights", lambda: jax.jit(
                _weigher(posterior.compiled, exact, call.rebuild, theta, outer),
                compiler_options=often()))
            found, log_weights = weigh(moments, bound, call.dynamic,
                                             random.split(key, num_samples))
    log_weights = np.asarray(log_weights)
    weights, k = psis(log_weights)
    peak = float(np.max(log_weights))
    evidence = peak + float(np.log(np.mean(np.exp(log_weights - peak))))
    return Corrected({n: outward(x) for n, x in found.items()}, weights, k,
                     float(1 / np.sum(weights**2)), evidence)


def _weigher(compiled: Compiled, exact: Compiled, rebuild: Callable, theta: list[str],
             outer: list[Belief]) -> Callable[..., tuple[dict, Array]]:
    """What draws the parameters and the states given them, and weighs these, by keys."""
    engine = compiled.engine

    def weigh(moments: dict, bound: Evidence, dynamic: list[Array], keys: Array
              ) -> tuple[dict, Array]:
        model, args, kwargs = rebuild(dynamic)

        def one(key: Array) -> tuple[dict, Array]:
            first, second = random.split(key)
            values = draws.draw_parameters(engine, moments, first, bound)[1]
            values = {n: values[n] for n in theta}
            log_q = sum(b.log_prob(moments[b.name], bound.clamps[b.name], values)
                        for b in outer)
            scores = density.program(model, args, kwargs, values)
            log_q += density.barren(engine, bound, {n: scores[n] for n in theta})
            fixed = split_call(condition(model, values), args, kwargs)
            inside, state, *_ = exact._first(fixed.dynamic, second, 2)
            states = draws.draw_sites(exact.engine, state.moments, inside, None, second)
            return {**values, **states}, -state.free_energy - log_q

        return in_batches(one, keys, 64)

    return weigh
