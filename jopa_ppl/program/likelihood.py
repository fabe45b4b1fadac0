"""The density that a site is scored by, as a pytree of the program's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from jopa_ppl.language.distributions import Unconstrained
from jopa_ppl.language.primitives import Amortized

STRAIGHT = (dist.Laplace, dist.AsymmetricLaplace, dist.AsymmetricLaplaceQuantile)


class Likelihood(NamedTuple):
    """The density a site is scored by: `tree.unflatten(leaves).log_prob(value)`.

    Its elements that are not the base distribution's own event are independent. Leaves and value
    are arrays; in a `Site`, the outputs of the program that hold them.
    """

    tree: Any
    leaves: tuple
    value: Any

    @property
    def outputs(self) -> tuple:
        """Leaves and value."""
        return (*self.leaves, self.value)

    def mapped(self, fn: Callable[[Any], Any]) -> Likelihood:
        """With `fn` of each."""
        return Likelihood(self.tree, tuple(map(fn, self.leaves)), fn(self.value))


class ByParameters(NamedTuple):
    """A density of independent elements, made of the parameters that its author gave (`tree` of a
    `Likelihood`); `transformed`: of u, x = T(u), where it is that of a latent."""

    make: type[dist.Distribution]
    names: tuple[str, ...]
    transformed: bool

    @property
    def straight(self) -> bool:
        """Whether its log is linear in |value - loc| / scale on both sides of loc."""
        return self.make in STRAIGHT

    @property
    def constraints(self) -> dict[str, Any]:
        """Where each parameter has to lie."""
        return {n: self.make.arg_constraints[n] for n in self.names}

    def unflatten(self, leaves: Sequence[Array]) -> dist.Distribution:
        """The distribution, of its parameters."""
        fn = self.make(**dict(zip(self.names, leaves)), validate_args=False)
        return Unconstrained(fn) if self.transformed else fn


class Transformation(NamedTuple):
    """x = T(u) of a latent whose belief is about u: `tree.unflatten(leaves)`, a NumPyro transform
    from the real numbers. Leaves are arrays; in a `Site`, outputs of the program."""

    tree: Any
    leaves: tuple

    def mapped(self, fn: Callable[[Any], Any]) -> Transformation:
        """With `fn` of each leaf."""
        return Transformation(self.tree, tuple(map(fn, self.leaves)))


def likelihood_of(base: dist.Distribution, value: Array | None) -> Likelihood:
    """The density of a distribution without wrappers at its data (None of a latent), by its
    parameters where it is made of these alone."""
    if isinstance(base, Amortized):
        base, _ = unwrapped(base.likelihood, ())
    leaves, tree = jax.tree.flatten(base)
    given = getattr(base, "base", base)
    names = tuple(type(given).arg_constraints)
    parameters = [getattr(given, n, None) for n in names]
    if not given.event_dim and names and all(p is not None for p in parameters):
        own = ByParameters(type(given), names, given is not base)
        try:
            own.unflatten(parameters)
        except (TypeError, ValueError):         # not made of these alone
            pass
        else:
            leaves, tree = parameters, own
    return Likelihood(tree, tuple(map(jnp.asarray, leaves)), value)


def unwrapped(fn: dist.Distribution, shape: tuple[int, ...]
            ) -> tuple[dist.Distribution, Array | None]:
    """The innermost distribution and the product of all masks, right-aligned with `shape`."""
    mask = None
    while True:
        if isinstance(fn, dist.MaskedDistribution):
            here = jnp.asarray(fn._mask)
            here = here.reshape(here.shape + (1,) * fn.event_dim)
            mask = here if mask is None else mask & here
        elif not isinstance(fn, dist.Independent | dist.ExpandedDistribution):
            return fn, mask
        fn = fn.base_dist
