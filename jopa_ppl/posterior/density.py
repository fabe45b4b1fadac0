"""Log densities of draws: of the beliefs, and of the program itself, site by site."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro.infer.util import compute_log_probs
from numpyro.primitives import Messenger

from jopa_ppl.compilation import in_batches, often
from jopa_ppl.engine.compiled import Compiled
from jopa_ppl.engine.engine import Engine
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.signature import Call
from jopa_ppl.errors import JopaError
from jopa_ppl.language.missing import without_gaps
from jopa_ppl.language.precision import in_double
from jopa_ppl.language.tracing import tracing
from jopa_ppl.settings import is_traced


def beliefs(engine: Engine, moments: dict, bound: Evidence, values: dict[str, Array]) -> Array:
    """log q of one draw {site: site shape}, over what is inferred (see `program` for the rest).

    Args:
        engine: of the program.
        moments: beliefs by block; bound: the numbers of the run.
        values: the draw.
    """
    return sum(b.log_prob(moments[b.name], bound.clamps[b.name], values)
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


class _Whole(Messenger):
    """Gives sites that are conditioned in part all of their values."""

    def __init__(self, fn: Callable, values: dict[str, Array]) -> None:
        super().__init__(fn)
        self.values = values

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "sample" and msg["name"] in self.values:
            msg["fn"], msg["value"] = without_gaps(msg["fn"]), self.values[msg["name"]]


def log_joint(compiled: Compiled, call: Call, draws: dict[str, Array]) -> Array:
    """log p of data and of joint draws {site: (count, *site shape)} together: (count,). Sites that
    nothing observed depends on do not count.

    Raises:
        JopaError: a site of a scan is conditioned in part.
    """
    sites = compiled.graph.program.sites
    partial = [n for n in draws if sites[n].partial]
    if inside := [n for n in partial if sites[n].scan is not None]:
        raise JopaError("log p of these draws is not to be had", found=f"the site '{inside[0]}' of "
                        "a scan, conditioned in part", expected="all of its values, or none",
                        fix="leave jp.condition out, and observe what is known of it")

    def one(values: dict[str, Array], dynamic: list) -> Array:
        model, args, kwargs = call.rebuild(dynamic)
        found = program(_Whole(model, {n: values[n] for n in partial}), args, kwargs, values)
        return sum((x.sum() for n, x in found.items() if n in values or sites[n].observed),
                   jnp.zeros(()))

    call.program()
    with tracing():
        score = compiled.stage("log joint", lambda: jax.jit(
            lambda d, dynamic: in_batches(lambda v: one(v, dynamic), d, 64),
            compiler_options=often()))
        return score(draws, call.dynamic)


def barren(engine: Engine, bound: Evidence, log_probs: dict[str, Array]) -> Array:
    """log q of what no observation reaches: it follows the program, so its log p."""
    total = jnp.zeros(())
    for name in log_probs:
        if name not in engine.graph.variables:
            continue
        variable = engine.graph.variables[name]
        if bound.clamps[engine.graph.block_of(name).name] is None:      # all of it is inferred
            continue
        site, alive = variable.site, bound.alive[name]
        whole = variable.values(jnp.broadcast_to(alive[..., None], (*alive.shape, variable.dims)))
        batch = whole.reshape((*whole.shape[:whole.ndim - len(site.event_shape)], -1))[..., 0]
        total += jnp.where(batch, 0.0, log_probs[name]).sum()
    return total


def log_prob(compiled: Compiled, moments: dict, bound: Evidence, call: Call | None,
             draws: dict[str, Array], shown: dict[str, Array]) -> Array:
    """log q of joint draws {site: (count, *site shape)}: (count,); `shown`: the same as the
    program has them, where latents are not what beliefs are about."""
    if call is None:
        raise JopaError("a loaded posterior has no density of draws",
                        found="beliefs without what of them is data, or predicted",
                        expected="a posterior that VMP returned",
                        fix="run it again from these beliefs, jp.VMP(jp.given(model, posterior)), "
                        "or ask a site: posterior['A'].log_prob(value)")
    everywhere = all(bool(a.all()) for a in bound.alive.values())

    def one(values: tuple[dict[str, Array], dict[str, Array]], moments: dict, bound: Evidence,
            dynamic: list) -> Array:
        found = beliefs(compiled.engine, moments, bound, values[0])
        if everywhere:
            return found
        model, args, kwargs = call.rebuild(dynamic)
        return found + barren(compiled.engine, bound, program(model, args, kwargs, values[1]))

    if not everywhere:
        call.program()
    with tracing():
        score = compiled.stage(("density", everywhere), lambda: jax.jit(
            lambda d, *rest: in_batches(lambda v: one(v, *rest), d, 64),
            compiler_options=often()))
        score = score.__wrapped__ if is_traced(draws) else score       # in a jit of the caller's
        return score((draws, shown), moments, bound, call.dynamic)
