"""What is integrated out of a program, as functions that JAX can trace: log evidence, moments,
draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax, random

from jopa_ppl.double import computed_in_double
from jopa_ppl.engine import exact, marginals
from jopa_ppl.infer.integrable import Split
from jopa_ppl.posterior import draws


def evidence(parts: Split) -> Callable[[list[Array]], Array]:
    """log Z of what is integrated out, from the arrays of a call; differentiable once, in reverse.
    """
    compiled, factors = parts.exact, parts.factors

    def make() -> Callable[[list[Array]], Array]:
        engine = compiled.engine
        bind = lambda leaves: engine.evidence(compiled.data(leaves))

        def both(*leaves: Array) -> tuple[Array, ...]:
            found, gradient = exact.value_and_gradient(engine, factors, bind, leaves)
            return found, *gradient.values()

        both = computed_in_double(both)
        log_z = jax.custom_vjp(lambda leaves: both(*leaves)[0])     # unused slopes cost nothing

        def forward(leaves: list[Array]) -> tuple[Array, list]:
            found, *gradient = both(*leaves)
            slopes = iter(gradient)
            return found, [next(slopes).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating)
                           else None for x in leaves]

        def backward(slopes: list, weight: Array) -> tuple[list]:
            return ([None if s is None else (weight * s).astype(s.dtype) for s in slopes],)

        log_z.defvjp(forward, backward)
        return log_z

    return compiled.stage("evidence", make)


def drawn(parts: Split) -> Callable[..., Sequence[Array]]:
    """A joint draw of what is integrated out, from a key and the arrays of a call."""
    compiled, sites = parts.exact, parts.inner

    def make() -> Callable[..., Sequence[Array]]:
        engine = compiled.engine

        def draw(key: Array, *leaves: Array) -> list[Array]:
            bound = engine.evidence(compiled.data(leaves))
            found = draws.draw_sites(engine, exact.solve(engine, bound), bound, None,
                              random.wrap_key_data(key))
            return [found[n] for n in sites]

        return computed_in_double(draw)

    inside = compiled.stage(("drawn back", sites), make)
    return lambda key, leaves: inside(random.key_data(key), *leaves)


def moments(parts: Split) -> Callable[[list[Array]], dict[str, tuple[Array, Array]]]:
    """Mean and variance of what is integrated out, by site, from the arrays of a call."""
    compiled, sites = parts.exact, parts.inner

    def make() -> Callable[[list[Array]], dict[str, tuple[Array, Array]]]:
        engine = compiled.engine

        def found(*leaves: Array) -> list[Array]:
            bound = engine.evidence(compiled.data(leaves))
            shaped = marginals.parts(engine, exact.solve(engine, bound), bound, None)[1]
            return [x for n in sites for x in shaped[n][:2]]

        both = computed_in_double(found)

        def by_site(leaves: list[Array]) -> dict[str, tuple[Array, Array]]:
            flat = both(*leaves)
            return {n: (flat[2 * i], flat[2 * i + 1]) for i, n in enumerate(sites)}

        return by_site

    return compiled.stage(("moments", sites), make)


def told_by(key: Array, values: Mapping[str, Array]) -> Array:
    """A key of their own for every values: samplers that draw sites as functions of others have one
    key for all. Sums of bits by odd factors, which values that differ seldom share."""
    key = random.key(random.bits(key, (), jnp.uint32))
    for i, x in enumerate(values.values()):
        kind = jnp.uint32 if x.dtype.itemsize >= 4 else jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = lax.bitcast_convert_type(lax.stop_gradient(x), kind).astype(jnp.uint32).ravel()
        odd = random.bits(random.key(i), bits.shape, jnp.uint32) | 1
        key = random.fold_in(key, jnp.sum(bits * odd, dtype=jnp.uint32))
    return key
