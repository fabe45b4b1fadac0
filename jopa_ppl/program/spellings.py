"""Sites as NumPyro lets them be written, in the form that the trace reads."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from jopa_ppl.arrays import native
from jopa_ppl.language.missing import data_of
from jopa_ppl.program.families import FAMILIES


class Factor(dist.Distribution):
    """A density of nothing: `numpyro.factor`, log p = log_factor whatever the (one) value."""

    support = constraints.real
    pytree_data_fields = ("log_factor",)

    def __init__(self, log_factor: Array) -> None:
        self.log_factor = log_factor
        super().__init__(jnp.shape(log_factor), ())

    def log_prob(self, value: Array) -> Array:
        return self.log_factor + 0 * value


def respelled(msg: dict[str, Any]) -> dist.Distribution:
    """The distribution of a site, its batch and its value broadcast as NumPyro's `log_prob` does; a
    factor as an observed site of its own family."""
    fn, value = msg["fn"], msg["value"]
    if isinstance(fn, dist.Unit):
        msg["value"] = jnp.zeros(jnp.shape(fn.log_factor))
        return Factor(fn.log_factor)
    if value is None:
        return fn
    event, shape = tuple(fn.event_shape), jnp.shape(native(value))
    batch = shape[:len(shape) - len(event)]
    if shape[len(batch):] != event or batch == tuple(fn.batch_shape):
        return fn
    try:
        whole = jnp.broadcast_shapes(batch, fn.batch_shape)
    except ValueError:
        return fn                                   # told by its shape
    if whole == tuple(fn.batch_shape):
        given = jnp.broadcast_to(jnp.asarray(native(data_of(msg))), whole + event)
        msg["value"] = jnp.broadcast_to(jnp.asarray(native(value)), whole + event)
        msg["infer"] = {**msg["infer"], "jopa_given": (msg["value"], given)}
    if whole == batch and not msg["cond_indep_stack"]:
        return fn.expand(batch)
    return fn


def only_value(fn: dist.Distribution) -> Array | None:
    """The one value that a `Delta` may have; None of any other."""
    base = fn
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    return jnp.broadcast_to(base.v, fn.shape()) if isinstance(base, dist.Delta) else None


def walked(msg: dict[str, Any]) -> Array | None:
    """A latent series as the scan that it is, and its steps: `GaussianRandomWalk`,
    x_t ~ Normal(x_{t-1}, scale), and `GaussianStateSpace`, x_t ~ Normal(A x_{t-1}, L L'); None of
    any other site."""
    fn = msg["fn"]
    if msg["value"] is not None or fn.batch_shape:
        return None
    if isinstance(fn, dist.GaussianRandomWalk):
        first, moved = jnp.zeros(()), lambda x: dist.Normal(x, fn.scale)
    elif isinstance(fn, dist.GaussianStateSpace):
        # As its author gave it, for every step: a Wishart precision stays one.
        noise = fn.base_dist.base_dist
        while isinstance(noise, dist.ExpandedDistribution | dist.Independent):
            noise = noise.base_dist
        key = FAMILIES["mvn"].noise_key(vars(noise))
        given = {key: getattr(noise, key)[..., 0, :, :]}
        first, moved = fn.initial_value, lambda x: dist.MultivariateNormal(
            fn.transition_matrix @ x, **given)
    else:
        return None

    def step(x: Array, _: None) -> tuple[Array, Array]:
        x = numpyro.sample(msg["name"], moved(x))
        return x, x

    return scan(step, first, None, length=fn.num_steps)[1]
