"""A run from several starts side by side, of which the one that comes to the least F is kept.

Where what belongs to what is latent (the labels of a mixture, the regimes of a series), beliefs
settle near where they begin, and a better place may lie elsewhere. The first start is that of one
alone; the others begin with globals as far from their priors' means as these are wide
(`Belief.scattered`: Gaussians, Gammas; of a Dirichlet its concentrations, by a factor of e).
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
from jopa_ppl.engine.compiled import Compiled, Options, Ran, compiled_for
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.signature import Call
from jopa_ppl.engine.state import State
from jopa_ppl.infer.batches import swept
from jopa_ppl.settings import ours


def best_of_starts(model: Callable, options: Options, args: tuple, kwargs: dict, key: Array,
                   starts: int, progress: bool
                   ) -> tuple[Compiled, Call, Ran, np.ndarray] | None:
    """What `engine.compiled.run` gives, of the best start, and F that each came to.

    Args:
        model, options, args, kwargs: as of `engine.compiled.run`.
        key: of the first start, and of the others by its splits.
        starts: how many, two at least; progress: whether a bar shows how far it is.

    Returns:
        F is (starts,), infinite of those that failed. None where one start is to be run as usual:
        one pass is all there is, or rounding takes the digits of a chain that may be drawn another
        way.
    """
    compiled, call = compiled_for(model, options, args, kwargs, checked=False)
    if compiled.single:
        return None
    begin, more = _stages(compiled)
    most = options.max_iters
    with ours():
        bound, state = begin(call.dynamic, key, random.split(key, starts - 1))
        compiled.refuse(call, jax.device_get(bound.checks))
        history = jnp.full((starts, most), jnp.nan)
        with tqdm(total=most, desc=f"VMP, {starts} starts", unit="sweep", leave=False,
                  delay=1.0, disable=not progress) as bar:
            state, history = swept(compiled, more, state, bound, history,
                                   lambda sweeps: bar.update(sweeps - bar.n))
        came = np.where(np.asarray(state.bad) < 0, np.asarray(state.free_energy), np.inf)
        state, past = jax.tree.map(lambda x: x[int(np.argmin(came))], (state, history))
        told, past = jax.device_get((state.told, past))
    if not told.serves and compiled.stiff:
        return None
    return compiled, call, Ran(told, state.moments, bound, past, None, None), came


def _stages(compiled: Compiled) -> tuple[Callable, Callable]:
    """The beginnings of all starts, and their sweeps: the evidence is one."""
    def begin(dynamic: list[Array], key: Array, others: Array) -> tuple[Evidence, State]:
        bound = compiled.engine.evidence(compiled.data(dynamic))
        rest = jax.vmap(lambda key: compiled.begun(key, bound, scattered=True))(others)
        return bound, jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]),
                                   compiled.begun(key, bound), rest)

    def made() -> tuple[Any, Any]:
        return (jax.jit(begin, compiler_options=once()),
                jax.jit(jax.vmap(compiled._more, (0, None, 0, None)), compiler_options=often()))

    return compiled.stage("starts", made)
