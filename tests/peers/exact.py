"""Judges that know the whole truth: sums over every value of what is discrete, and dense linear
algebra for what is Gaussian, both of NumPyro's own `log_density`."""

from __future__ import annotations

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.flatten_util import ravel_pytree
from numpyro.infer.util import log_density
from scipy import special

import jopa_ppl as jp

from .judges import DRAWS, Judge, Model, draws


def _latents(model: Model, args: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
    trace = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace(*args)
    return {n: s for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}


def _tables(sites: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """Every joint value of the discrete sites: {site: (count, *shape)}."""
    values = {n: np.unique(np.asarray(s["fn"].enumerate_support(expand=False)))
              for n, s in sites.items()}
    sizes = {n: np.size(s["value"]) for n, s in sites.items()}
    every = np.array(list(product(*(values[n] for n in sites for _ in range(sizes[n])))))
    ends = np.cumsum([0, *sizes.values()])
    return {n: every[:, a:b].reshape((-1, *np.shape(sites[n]["value"])))
            for n, a, b in zip(sites, ends, ends[1:])}


def enumerated(atol: float = 1e-8) -> Judge:
    """Discrete latents alone: F is -log p(data), marginals and densities are those of a sum."""
    def judge(found: jp.Posterior, model: Model, args: tuple[Any, ...]) -> None:
        sites = _latents(model, args)
        assert all(s["fn"].support.is_discrete for s in sites.values())
        every = {n: jnp.asarray(v) for n, v in _tables(sites).items()}
        seeded = numpyro.handlers.seed(model, 0)
        log = np.asarray(jax.jit(jax.vmap(
            lambda z: log_density(seeded, args, {}, z)[0]))(every))
        evidence = special.logsumexp(log)
        weight = np.exp(log - evidence)
        assert found.converged
        np.testing.assert_allclose(found.free_energy[-1], -evidence, atol=atol)
        for name, values in every.items():
            mean = np.tensordot(weight, np.asarray(values, float), 1)
            np.testing.assert_allclose(found.mean(name), mean, atol=atol, err_msg=name)
        likely = weight > 1e-6
        said = found.log_prob({n: v[likely] for n, v in every.items()})
        np.testing.assert_allclose(said, log[likely] - evidence, atol=100 * atol)

    return judge


def dense(rtol: float = 1e-7) -> Judge:
    """Gaussian latents alone: F is -log p(data), means and spreads are those of a dense solve."""
    return _by_paths(nats=None, rtol=rtol)


def paths(nats: float, prob: float = 0.1) -> Judge:
    """Gaussian given the discrete: F lies above the sum over all values, at most `nats`, and
    probabilities are off by at most `prob`: what a mean field of the two loses."""
    return _by_paths(nats=nats, prob=prob)


def _by_paths(nats: float | None, rtol: float = 0.0, prob: float = 0.0) -> Judge:
    def judge(found: jp.Posterior, model: Model, args: tuple[Any, ...]) -> None:
        sites = _latents(model, args)
        fixed = {n: s for n, s in sites.items() if s["fn"].support.is_discrete}
        start = {n: jnp.zeros(np.shape(s["value"])) for n, s in sites.items() if n not in fixed}
        zero, unravel = ravel_pytree(start)
        seeded = numpyro.handlers.seed(model, 0)

        def solved(z: dict[str, Any]) -> tuple[Any, ...]:
            def log(u: jax.Array) -> jax.Array:
                return log_density(seeded, args, {}, {**unravel(u), **z})[0]

            slope, H = jax.grad(log)(zero), -jax.hessian(log)(zero)
            m = jnp.linalg.solve(H, slope)
            size = len(zero) * np.log(2 * np.pi) - jnp.linalg.slogdet(H)[1]
            return log(zero) + 0.5 * slope @ m + 0.5 * size, m, jnp.diag(jnp.linalg.inv(H))

        every = {n: jnp.asarray(v) for n, v in _tables(fixed).items()} if fixed else {}
        found_log, m, v = (np.asarray(a) for a in (
            jax.jit(lambda e: jax.lax.map(solved, e))(every) if fixed
            else jax.tree.map(lambda a: a[None], jax.jit(solved)({}))))
        evidence = special.logsumexp(found_log)
        weight = np.exp(found_log - evidence)
        mean = weight @ m
        spread = np.sqrt(weight @ (v + m**2) - mean**2)
        assert found.converged
        gap = found.free_energy[-1] + evidence
        names = {n: unravel(jnp.asarray(mean))[n] for n in start}
        sds = {n: unravel(jnp.asarray(spread))[n] for n in start}
        if nats is None:
            assert abs(gap) < rtol * (1 + abs(evidence)), gap
            for n in start:
                np.testing.assert_allclose((found.mean(n) - names[n]) / sds[n], 0,
                                           atol=100 * rtol, err_msg=n)
                np.testing.assert_allclose(np.sqrt(found.variance(n)) / sds[n], 1,
                                           rtol=100 * rtol, err_msg=n)
            return
        assert -1e-6 < gap < nats, gap
        for n, values in every.items():
            share = np.tensordot(weight, np.asarray(values, float), 1)
            assert np.abs(found.mean(n) - share).max() < prob, (n, found.mean(n), share)
        for n in start:
            assert (np.abs(found.mean(n) - names[n]) < 0.5 * sds[n] + 1e-6).all(), n

    return judge


def labels(found: jp.Posterior, model: Model, args: tuple[Any, ...],
           groups: tuple[tuple[str, ...], ...], count: int = 6) -> None:
    """The belief about each group of discrete sites is its own best: over values that it holds
    likely, log q(z) - E[log p(data, z, rest)] is one constant, the rest drawn from q."""
    seeded = numpyro.handlers.seed(model, 0)
    names = list(_latents(model, args))
    drawn = {n: jnp.asarray(v) for n, v in found.sample(1, (2 * DRAWS,)).items() if n in names}
    joint = jax.jit(jax.vmap(lambda d: log_density(seeded, args, {}, d)[0]))
    for group in groups:
        off = []
        for i in range(count):
            here = drawn | {n: jnp.broadcast_to(drawn[n][i], drawn[n].shape) for n in group}
            off.append(np.asarray(found.log_prob(here) - joint(here)))
        gaps = np.array(off[1:]) - off[0]
        error = gaps.std(1) / np.sqrt(2 * DRAWS)
        assert (np.abs(gaps.mean(1)) < 5 * error + 0.05).all(), (group, gaps.mean(1), error)


def mixed(*groups: tuple[str, ...], **options: float) -> Judge:
    """`draws` for what is continuous, `labels` for the discrete: all of it one group, or `groups`
    of sites whose beliefs are independent of each other."""
    def judge(found: jp.Posterior, model: Model, args: tuple[Any, ...]) -> None:
        draws(**options)(found, model, args)
        discrete = tuple(n for n, s in _latents(model, args).items()
                         if s["fn"].support.is_discrete)
        labels(found, model, args, groups or (discrete,))

    return judge


def differ(name: str, judge: Judge) -> Judge:
    """`judge`, and the kinds that labels choose between are not all alike: at a saddle point,
    where they are, each belief is its own best too."""
    def both(found: jp.Posterior, model: Model, args: tuple[Any, ...]) -> None:
        judge(found, model, args)
        mean = np.asarray(found.mean(name))
        assert np.ptp(mean, axis=0).max() > 0.05, mean

    return both
