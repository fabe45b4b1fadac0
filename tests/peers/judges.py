"""The oracles a fit is judged by. None reads a rule of the library: each takes draws of q, the
density of q and F, and NumPyro's own `log_density` of the program.

Why these tolerances. Of what is not conjugate F holds expectations by quadrature along what an
element of a site is made of, linearised there: hundredths of a nat in all and thousandths an
element, beside the 4 standard errors of the draws. A belief is the best of its family (one
Gaussian a block in unconstrained space, or exactly conjugate), so E_q[grad log p] = 0 and
E_q[(u - m) grad log p] = -1 there, within 5 standard errors, .1 sds and 15 %.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.flatten_util import ravel_pytree
from numpyro.distributions import biject_to
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density
from scipy import special

import jopa_ppl as jp

Model = Callable[..., Any]
Judge = Callable[[jp.Posterior, Model, tuple[Any, ...]], None]
DRAWS = 1000


class Unconstrained(NamedTuple):
    """A program's continuous latents as one real vector, the discrete ones beside it."""

    flatten: Callable[[dict[str, Any]], jax.Array]      # a dict of draws -> (n, d)
    unflatten: Callable[[jax.Array], dict[str, Any]]    # (d,) -> a value of each latent
    log_p: Callable[..., tuple[jax.Array, jax.Array]]   # (d,), discrete -> with Jacobians, without
    names: list[str]                                    # whose element each of d is
    discrete: list[str]


def unconstrained(model: Model, args: tuple[Any, ...]) -> Unconstrained:
    seeded = numpyro.handlers.seed(model, 0)
    sites = {n: s for n, s in numpyro.handlers.trace(seeded).get_trace(*args).items()
             if s["type"] == "sample" and not s["is_observed"]}
    discrete = [n for n, s in sites.items() if s["fn"].support.is_discrete]
    maps = {n: biject_to(s["fn"].support) for n, s in sites.items() if n not in discrete}
    start = {n: maps[n].inv(sites[n]["value"]) for n in maps}
    back = ravel_pytree(start)[1]

    def unflatten(u: jax.Array) -> dict[str, Any]:
        return {n: maps[n](v) for n, v in back(u).items()}

    def log_p(u: jax.Array, z: dict[str, Any] | None = None) -> tuple[jax.Array, jax.Array]:
        free, x = back(u), unflatten(u)
        jacobian = sum(jnp.sum(maps[n].log_abs_det_jacobian(free[n], x[n])) for n in maps)
        joint = log_density(seeded, args, {}, {**x, **(z or {})})[0]
        return joint + jacobian, joint

    def flatten(drawn: dict[str, Any]) -> jax.Array:
        return jax.vmap(lambda d: ravel_pytree({n: maps[n].inv(d[n]) for n in maps})[0])(
            {n: jnp.asarray(drawn[n]) for n in maps})

    names = [n for n in sorted(start) for _ in range(jnp.size(start[n]))]
    return Unconstrained(flatten, unflatten, log_p, names, discrete)


def energy(found: jp.Posterior, model: Model, args: tuple[Any, ...]) -> dict[str, Any]:
    """What draws say of F and of each element's own fixed point; numbers alone, no verdict."""
    space = unconstrained(model, args)
    drawn = found.sample(0, (2 * DRAWS,))
    u = space.flatten(drawn)
    z = {n: jnp.asarray(drawn[n]) for n in space.discrete}
    each = jax.value_and_grad(space.log_p, has_aux=True)
    at_once = jax.jit(lambda *x: jax.lax.map(lambda x: each(*x), x, batch_size=200))
    (value, joint), slope = at_once(u, z)
    value, slope = np.asarray(value), np.asarray(slope)
    losses = np.asarray(found.log_prob(drawn) - joint)
    first, second = losses[:DRAWS], losses[DRAWS:]
    u = np.asarray(u)
    away, sd = u - u.mean(0), u.std(0)
    shift = slope @ np.atleast_2d(np.cov(u.T)).T / sd          # a Newton step, in sds
    scale = away * slope + 1
    root = np.sqrt(len(u))
    return {
        "F": float(found.free_energy[-1]), "size": len(sd), "value": value,
        "gap": first.mean() - found.free_energy[-1], "error": first.std() / np.sqrt(DRAWS),
        "evidence": special.logsumexp(-second) - np.log(DRAWS),
        "evidence_error": np.exp(-second - (-second).max()).std()
        / np.exp(-second - (-second).max()).mean() / np.sqrt(DRAWS),
        "shift": shift.mean(0), "shift_error": shift.std(0) / root,
        "scale": scale.mean(0), "scale_error": scale.std(0) / root, "names": space.names}


def draws(nats: float = 0.0, shift: float = 0.1, scale: float = 0.15) -> Judge:
    """F is what draws of q say, no bound above the evidence, and each belief its own best.

    Args:
        nats: What F may be off besides 4 standard errors, .05 and .01 a latent element.
        shift: How far a mean may lie from its own optimum, in sds.
        scale: How far a spread may, as a fraction.
    """
    def judge(found: jp.Posterior, model: Model, args: tuple[Any, ...]) -> None:
        assert found.converged
        said = energy(found, model, args)
        allowed = 4 * said["error"] + 0.05 + min(0.01 * said["size"], 0.25) + nats
        assert abs(said["gap"]) < allowed, (said["gap"], said["error"])
        assert said["F"] + said["evidence"] > -allowed - 4 * said["evidence_error"]
        for what, most in (("shift", shift), ("scale", scale)):
            off = np.abs(said[what]) - 5 * said[f"{what}_error"] - most
            worst = int(off.argmax())
            assert off[worst] < 0, (what, said["names"][worst], said[what][worst])

    return judge


def whole(model: Model, args: tuple[Any, ...], nats: float = 0.1) -> Judge:
    """F against draws by the program `model` itself, of which a site was conditioned in part.

    Its draws hold what was given beside what was inferred; q's density counts the latter alone.
    """
    def judge(found: jp.Posterior, _: Model, __: tuple[Any, ...]) -> None:
        drawn = {n: jnp.asarray(v) for n, v in found.sample(0, (DRAWS,)).items()}
        seeded = numpyro.handlers.seed(model, 0)
        joint = jax.jit(jax.vmap(lambda d: log_density(seeded, args, {}, d)[0]))(drawn)
        losses = np.asarray(found.log_prob(drawn) - joint)
        gap, error = losses.mean() - found.free_energy[-1], losses.std() / np.sqrt(DRAWS)
        assert found.converged and abs(gap) < 4 * error + nats, (gap, error)

    return judge


def without(name: str, judge: Judge) -> Judge:
    """`judge` of the program without a latent that nothing reads: it is no part of F."""
    def rest(found: jp.Posterior, model: Model, args: tuple[Any, ...]) -> None:
        seeded = numpyro.handlers.seed(model, 0)
        judge(found, numpyro.handlers.block(seeded, hide=[name]), args)

    return rest


def grid(nats: float = 0.05, mean: float = 0.1, low: float = 0.85) -> Judge:
    """One or two latents against a grid: F just above -log p(data), means, spreads.

    Args:
        nats: How far F may lie above: what a mean field of this shape loses.
        mean: How far a mean may lie off, in sds of the exact posterior.
        low: The least ratio of a spread to the exact one; mean field is too narrow.
    """
    def judge(found: jp.Posterior, model: Model, args: tuple[Any, ...]) -> None:
        assert found.converged
        space = unconstrained(model, args)
        u = np.asarray(space.flatten(found.sample(0, (4000,))))
        m, sd = u.mean(0), u.std(0)
        assert len(m) < 3
        line = np.linspace(-9.0, 9.0, 2001 if len(m) == 1 else 301)
        z = np.stack(np.meshgrid(*[line] * len(m), indexing="ij"), -1).reshape(-1, len(m))
        log = np.asarray(jax.jit(jax.vmap(space.log_p))(jnp.asarray(m + sd * z))[0])
        log = np.where(np.isfinite(log), log, -np.inf)
        w = special.softmax(log)
        evidence = special.logsumexp(log) + np.log(sd * (line[1] - line[0])).sum()
        exact = w @ z
        spread = np.sqrt(w @ z**2 - exact**2)
        assert -1e-3 < found.free_energy[-1] + evidence < nats, found.free_energy[-1] + evidence
        assert (np.abs(exact) < mean * spread + 0.06).all(), exact / spread
        assert ((low < 1 / spread) & (1 / spread < 1.1)).all(), 1 / spread

    return judge


def nuts(found: jp.Posterior, model: Model, args: tuple[Any, ...], within: float = 0.3
         ) -> dict[str, tuple[float, float]]:
    """Means against NUTS's, in unconstrained space, where heavy tails have moments.

    Returns:
        {site: largest difference of a mean in NUTS's sds, median ratio of sds}.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chain = MCMC(NUTS(model, target_accept_prob=0.9), num_warmup=500, num_samples=1500,
                     progress_bar=False)
        chain.run(jax.random.key(0), *args)
    space = unconstrained(model, args)
    theirs = np.asarray(space.flatten(chain.get_samples()))
    ours = np.asarray(space.flatten(found.sample(0, (4000,))))
    said = beside(ours, theirs, space.names)
    assert max(off for off, _ in said.values()) < within, said
    return said


def beside(ours: np.ndarray, theirs: np.ndarray, names: list[str]
           ) -> dict[str, tuple[float, float]]:
    """{site: largest difference of a mean in their sds, median ratio of sds}, of draws (n, d)."""
    off = np.abs(ours.mean(0) - theirs.mean(0)) / theirs.std(0)
    ratio = ours.std(0) / theirs.std(0)
    whose = np.array(names)
    return {n: (float(off[whose == n].max()), float(np.median(ratio[whose == n])))
            for n in dict.fromkeys(names)}
