"""One step of an Optax optimiser down a loss: all that trains here trains by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array


def descended(optimiser: optax.GradientTransformation, loss: Callable[[Any], Array],
              parameters: Any, state: Any) -> tuple[Any, Any, Array]:
    """Parameters and the optimiser's state after one step, and the loss before it.

    Args:
        optimiser: an Optax one, which may ask for the loss and its value too.
        loss: parameters -> a scalar.
        parameters: a pytree of arrays.
        state: of the optimiser, from its `init` or from the step before.
    """
    value, slope = jax.value_and_grad(loss)(parameters)
    # Line searches and schedules by plateau ask for these.
    change, new = optax.with_extra_args_support(optimiser).update(
        slope, state, parameters, value=value, grad=slope, value_fn=loss)
    new = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, state)
    return optax.apply_updates(parameters, change), new, value
