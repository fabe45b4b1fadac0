"""A run from several starts side by side, of which the one that comes to the least F is kept.

Where what belongs to what is latent (the labels of a mixture, the regimes of a series), beliefs
settle near where they begin, and a better place may lie elsewhere. The first start is that of one
alone; the others begin with globals as far from their priors' means as these are wide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from tqdm.auto import tqdm

from jopa_ppl.compilation import often, once
from jopa_ppl.engine.beginnings import start
from jopa_ppl.engine.compiled import CHUNK, Compiled, Options, compiled_for
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.outcome import after
from jopa_ppl.engine.state import State
from jopa_ppl.posterior.posterior import Posterior
from jopa_ppl.settings import ours


def best_of_starts(model: Callable, options: Options, args: tuple, kwargs: dict, key: Array,
                   starts: int, progress: bool) -> Posterior | None:
    """As `VMP.run`, from the given key and others that follow from it; None where one pass is all
    there is, wherever it begins."""
    compiled, call = compiled_for(model, options, args, kwargs, checked=False)
    if compiled.single:
        return None
    begin, more = _stages(compiled)
    most, until = options.max_iters, 0
    with ours():
        bound, state = begin(call.dynamic, key, random.split(key, starts - 1))
        compiled.refuse(call, jax.device_get(bound.checks))
        history = jnp.full((starts, most), jnp.nan)
        with tqdm(total=most, desc=f"VMP, {starts} starts", unit="sweep", leave=False,
                  delay=1.0, disable=not progress) as bar:
            while until < most and not np.asarray(state.converged | (state.bad >= 0)).all():
                until = min(until + CHUNK, most)
                state, history = more(state, bound, history, until)
                bar.update(until - bar.n)
        came = np.where(np.asarray(state.bad) < 0, np.asarray(state.free_energy), np.inf)
        best = int(np.argmin(came))
        state = jax.tree.map(lambda x: x[best], state)
        told, past = jax.device_get((state.told, history[best]))
    posterior = Posterior(compiled, call, told._replace(moments=state.moments), bound, past,
                          starts=came)
    after(compiled, call, told, past, lambda: posterior)
    return posterior


def _stages(compiled: Compiled) -> tuple[Callable, Callable]:
    """The beginnings of all starts, and their sweeps: the evidence is one."""
    def begin(dynamic: list[Array], key: Array, others: Array) -> tuple[Evidence, State]:
        engine = compiled.engine
        bound = engine.bind(compiled.data(dynamic))
        rest = jax.vmap(lambda key: start(engine, key, bound, scattered=True))(others)
        return bound, jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]),
                                   start(engine, key, bound), rest)

    def made() -> tuple[Any, Any]:
        return (jax.jit(begin, compiler_options=once()),
                jax.jit(jax.vmap(compiled._more, (0, None, 0, None)), compiler_options=often()))

    return compiled.stage("starts", made)
