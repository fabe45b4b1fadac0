"""One loop of stochastic gradient steps, for networks that are no part of a program yet.

Those that are train by `jp.VariationalEM`, on the free energy of the whole program.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from tqdm.auto import tqdm

from jopa_ppl.compilation import often, once
from jopa_ppl.descent import descended


class Recipe(Protocol):
    """What shapes a training, apart from arrays; hashable, so that all runs of one compile once.

    steps: how many; optimiser(): an Optax one; loss(parameters, data, key, step): a scalar, on a
    minibatch of `data` (a pytree) drawn by its key, a new one for every step.
    """

    @property
    def steps(self) -> int: ...

    def optimiser(self) -> optax.GradientTransformation: ...

    def loss(self, parameters: Any, data: Any, key: Array, step: Array) -> Array: ...


def descend(recipe: Recipe, parameters: Any, data: Any, rng_key: Array, *, several: bool = False,
            label: str = "training", progress: bool = True) -> tuple[Any, np.ndarray]:
    """The parameters after all steps, and the losses (steps,).

    Args:
        recipe: steps, optimiser and loss.
        parameters: a pytree of arrays; data: another, handed to the loss.
        rng_key: every step draws by a key of its own made of it.
        several: parameters have an axis of copies in front, which descend side by side, each for
            itself, by the same draws: losses (steps, copies).
        label: of the bar; progress: whether it shows.
    """
    begin = jax.vmap(recipe.optimiser().init) if several else recipe.optimiser().init
    carry, losses = (parameters, jax.jit(begin, compiler_options=once())(parameters)), []
    size = max(1, recipe.steps // 10)
    with tqdm(total=recipe.steps, desc=label, unit="step", disable=not progress) as bar:
        for start in range(0, recipe.steps, size):
            steps = jnp.arange(start, min(start + size, recipe.steps))
            carry, values = _advancing()(recipe, several, carry, data, rng_key, steps)
            losses.append(np.asarray(values))
            bar.set_postfix_str(f"loss {losses[-1][-1].min():.1f}", refresh=False)
            bar.update(len(values))
    return carry[0], np.concatenate(losses)


@cache
def _advancing() -> Any:
    """`_advance` jitted when it is first asked for: what XLA is told asks which devices there are,
    and an import should start none."""
    return jax.jit(_advance, static_argnums=(0, 1), compiler_options=often())


def _advance(recipe: Recipe, several: bool, carry: tuple, data: Any, rng_key: Array, steps: Array
             ) -> tuple[tuple, Array]:
    optimiser = recipe.optimiser()

    def update(carry: tuple, step: Array) -> tuple[tuple, Array]:
        key = jax.random.fold_in(rng_key, step)

        def one(parameters: Any, state: Any) -> tuple[Any, Any, Array]:
            return descended(optimiser, lambda p: recipe.loss(p, data, key, step), parameters,
                             state)

        *carry, values = (jax.vmap(one) if several else one)(*carry)
        return tuple(carry), values

    return jax.lax.scan(update, carry, steps)
