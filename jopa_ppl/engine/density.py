"""What every family of factors answers, and the numbers that most read."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.engine.evidence import FactorArrays
from jopa_ppl.engine.expectations import Expectations, Stats
from jopa_ppl.engine.numbers import own_value, to_precision, weight_of
from jopa_ppl.engine.reading import Source, by_step, evaluate_in
from jopa_ppl.graph.factor import Factor


class Density:
    """A family. `of_precision`: its latent site is a precision, of whose belief F holds the
    divergence from its prior; `gaussian`: it is affine in the latents of its mean."""

    of_precision: ClassVar[bool] = False
    gaussian: ClassVar[bool] = False

    def numbers(self, f: Factor, source: Source) -> FactorArrays:
        """The numbers of a factor, from the program's data."""
        raise NotImplementedError

    def expected(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                 held: list[Array] | None) -> Array:
        """E_q[log f], all normalisers included (and less <`held`, S> / 2); in nats."""
        raise NotImplementedError

    def divergence(self, energy: Expectations, f: Factor, arrays: FactorArrays, stats: Stats,
                   belief: Any) -> Array:
        """-E_q[log f] - entropy of a precision's belief: KL(q || f) where f has weight one."""
        raise NotImplementedError

    def scale(self, f: Factor, found: Array) -> tuple[Array, Array]:
        """What its latent noise comes to, and the log of it, split by plates."""
        return to_precision(f, found)

    def improper(self, f: Factor, arrays: FactorArrays) -> Array:
        """Where its own parameters make no density (or are NaN)."""
        return jnp.zeros((), bool)

    def faults(self, energy: Expectations, f: Factor, arrays: FactorArrays) -> dict[str, Array]:
        """Where its numbers are at fault, by what it is called; compiled only for an error."""
        numbers = jax.tree.leaves((arrays.K, arrays.known, arrays.offset))
        return {"coefficients": sum((~jnp.isfinite(x)).sum() for x in numbers)}


def own_numbers(f: Factor, source: Source, filler: Array | float) -> FactorArrays:
    """Those of a factor whose concentration is data, in K, in the site's shape, and whose own value
    is in offset.

    Args:
        f: the factor; source: the data of the run.
        filler: what stands where its own value is missing: one that can be.
    """
    evaluate, own = source.evaluator(f), [f.site.outputs["concentration"]]
    shape = by_step(f, f.varying_in_time, lambda step: evaluate(own, {}, step)[0])
    return FactorArrays(shape, own_value(f, source, filler), weight_of(f, source), jnp.zeros(()),
                        None, None, source.env(f))


def at_data(energy: Expectations, f: Factor, arrays: FactorArrays, key: str) -> Array:
    """A parameter of the noise that is made of data.

    Args:
        energy, f, arrays: the factor and its numbers; key: of its site's output.

    Returns:
        (T or 1, *site shape), without time where the factor has none.
    """
    return by_step(f, f.noise_varying, lambda step: evaluate_in(
        energy.graph.reader, f, arrays.env, [f.site.outputs[key]], {}, step)[0])
