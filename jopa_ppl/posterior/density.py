"""Log densities of draws: of the beliefs, and of the program itself, site by site."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.scipy.linalg import solve_triangular
from numpyro.infer.util import compute_log_probs

from jopa_ppl.compilation import in_batches, often
from jopa_ppl.engine.beliefs import Clamp
from jopa_ppl.engine.engine import Bound, Engine
from jopa_ppl.engine.layout import join, split
from jopa_ppl.errors import JopaError
from jopa_ppl.graph.factor import Block
from jopa_ppl.language.precision import in_double
from jopa_ppl.language.tracing import tracing
from jopa_ppl.settings import is_traced

LOG_2PI = math.log(2 * math.pi)


def beliefs(engine: Engine, moments: dict, bound: Bound, values: dict[str, Array]) -> Array:
    """log q of one draw {site: site shape}, over what is inferred (see `program` for the rest)."""
    return sum(block(engine, b, moments[b.name], bound.clamps[b.name], values)
               for b in engine.graph.blocks)


def program(model: Callable, args: tuple, kwargs: dict, values: dict[str, Array]
            ) -> dict[str, Array]:
    """log p of every site of one run of the program with its latents at `values`.

    {site: (*batch)}, time in front inside a scan; sites without a value are drawn.

    Raises:
        JopaError: NumPyro's `scan` cannot give some site's density its axis of time.
    """
    model, args, kwargs = in_double((model, args, kwargs))
    seeded = numpyro.handlers.seed(model, rng_seed=0)
    try:
        return compute_log_probs(seeded, args, kwargs, values, sum_log_prob=False)[0]
    except ValueError as error:
        if "promote_batch_shape" not in "".join(traceback.format_tb(error.__traceback__)):
            raise
        raise JopaError("log p of this program is not to be had",
                        found="a site in a scan that NumPyro's scan cannot give an axis of time",
                        expected="distributions of one event axis in scans, such as "
                                 "MultivariateNormal",
                        fix="write a MatrixNormal in a scan as a MultivariateNormal of its "
                            "flattened value") from error


def barren(engine: Engine, bound: Bound, log_probs: dict[str, Array]) -> Array:
    """log q of what no observation reaches: it follows the program, so its log p."""
    total = jnp.zeros(())
    for name in log_probs:
        if name not in engine.graph.variables:
            continue
        variable = engine.graph.variables[name]
        site, lead = variable.site, int(variable.site.scan is not None)
        if variable.family != "gaussian":
            continue
        alive = bound.alive[name]
        whole = join(jnp.broadcast_to(alive[..., None], (*alive.shape, variable.dims)), site,
                     variable.local, lead)
        batch = whole.reshape((*whole.shape[:whole.ndim - len(site.event_shape)], -1))[..., 0]
        total += jnp.where(batch, 0.0, log_probs[name]).sum()
    return total


def block(engine: Engine, block: Block, m: Any, clamp: Any, values: dict[str, Array]) -> Array:
    """log q of one block at one draw, from its moments and what of it is not inferred."""
    if block.kind == "gamma":
        return dist.Gamma(m.a, m.b).log_prob(values[block.name]).sum()
    if block.kind == "wishart":
        return dist.Wishart(m.dof, rate_matrix=m.rate).log_prob(values[block.name]).sum()
    belief, parts = engine.beliefs[block.name], {}
    for name in block.members:
        v = engine.graph.variables[name]
        parts[name] = split(values[name], v.site, v.local)
    if block.kind == "dense":
        gap = (jnp.concatenate(list(parts.values()), -1) - m.mean) * clamp.free
        white = solve_triangular(jnp.linalg.cholesky(m.cov), gap[..., None], lower=True)
        return _gaussian(jnp.sum(white**2), m.logdet, clamp)
    if block.kind == "elimination":
        gap = {n: parts[n] - m.mean[n] for n in parts}
        for n, c in (clamp or {}).items():
            gap[n] = gap[n] * c.free
        square = jnp.zeros(())
        for key, factor in belief.factors.items():
            here = belief.view((gap, m.cov), factor).mean
            square += jnp.einsum("...i,...ij,...j->", here, m.precision[key], here)
        free = belief.entropy(m, clamp) * 2 + jnp.sum(m.logdet)     # n (log 2 pi + 1)
        return 0.5 * (jnp.sum(m.logdet) - square - free / (LOG_2PI + 1) * LOG_2PI)
    z = belief.nodes(jnp.concatenate([parts[n] for n in block.variables], -1))
    if block.head:
        z = jnp.concatenate([belief.head_vector({n: parts[n] for n in block.head})[None], z])
    gap = (z - m.mean) * clamp.free
    square = (jnp.einsum("...i,...ij,...j->", gap, m.diag, gap)
              + 2 * jnp.einsum("...i,...ij,...j->", gap[1:], m.off, gap[:-1]))
    return _gaussian(square, m.logdet, clamp)


def _gaussian(square: Array, logdet: Array, clamp: Clamp) -> Array:
    return 0.5 * (jnp.sum(logdet) - square - jnp.sum(clamp.free) * LOG_2PI)


def log_prob(compiled: Any, moments: dict, bound: Bound, call: Any, draws: dict[str, Array]
             ) -> Array:
    """log q of joint draws {site: (count, *site shape)}: (count,)."""
    everywhere = all(bool(a.all()) for a in bound.alive.values())
    if call is None and not everywhere:
        raise JopaError("steps that no observation reaches have no density without the program",
                        found="a loaded posterior", expected="a posterior that VMP returned",
                        fix="run the program again")

    def one(values: dict[str, Array], moments: dict, bound: Bound, dynamic: list) -> Array:
        found = beliefs(compiled.engine, moments, bound, values)
        if everywhere:
            return found
        model, args, kwargs = call.rebuild(dynamic)
        return found + barren(compiled.engine, bound, program(model, args, kwargs, values))

    if not everywhere:
        call.program()
    with tracing():
        if not hasattr(compiled, "density"):
            compiled.density = {}
        if everywhere not in compiled.density:
            compiled.density[everywhere] = jax.jit(
                lambda d, *rest: in_batches(lambda v: one(v, *rest), d, 64),
                compiler_options=often())
        score = compiled.density[everywhere]
        score = score.__wrapped__ if is_traced(draws) else score       # in a jit of the caller's
        return score(draws, moments, bound, call.dynamic if call else [])
