"""Read a NumPyro distribution: its family and the parameters its author gave.

NumPyro keeps the arguments a user passed (`precision_matrix`, `covariance_matrix`, ..) on the
object; what it derives from them (a Cholesky factor) would hide a latent precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import ExpTransform

from jopa_ppl.arrays import native
from jopa_ppl.errors import ShapeError, StructureError
from jopa_ppl.language.distributions import ArrayNormal, Unconstrained
from jopa_ppl.language.missing import mask_missing, without_gaps
from jopa_ppl.language.precision import as_network_takes
from jopa_ppl.language.primitives import Amortized
from jopa_ppl.program.families import FAMILIES, OfFamily
from jopa_ppl.program.likelihood import Likelihood, Transformation, likelihood_of, unwrapped
from jopa_ppl.program.tallies import bounds, marked, tally


@dataclass(frozen=True)
class Described(OfFamily):
    """Family and parameters of a site, all of the site's full shape (matrices: batch + (n, n)).

    Keys: loc and one of scale, precision_matrix, covariance_matrix, scale_tril, row/column factors
    (Gaussian); concentration and rate (gamma); concentration and a matrix (wishart); value, present
    and weight where observed, observed in part, scaled or masked.
    """

    family: str
    params: dict[str, Array]
    amortized: bool = False
    event_shape: tuple[int, ...] = ()
    kind: str = ""             # the name of its class, without wrappers
    likelihood: Likelihood | None = None
    transform: Transformation | None = None
    values: tuple[int, ...] = ()


def describe(name: str, fn: dist.Distribution, value: Array | None, scale: Array | float | None,
             rank: int, partial: bool, given: ArrayLike | None, step: bool = False) -> Described:
    """Family and parameters of a site.

    Args:
        name, fn: the site and its distribution; value: its data, or None.
        scale: of `numpyro.handlers.scale`, or None; rank: axes of distribution and plates.
        partial: it is latent where its value is NaN; given: its value with NaN where missing.
        step: it is drawn at every step of a scan.

    Raises:
        ShapeError: the value is not exactly of the site's shape, or not real; `scale` does not fit.
        StructureError: discrete latents in one event.
    """
    shape = tuple(fn.batch_shape) + tuple(fn.event_shape)
    params: dict[str, Array] = {}
    if value is not None:
        value = jnp.asarray(native(value))
        own = shape[len(shape) - rank:]
        if value.shape != own:
            many = value.ndim > rank and value.shape[value.ndim - rank:] == own
            batch = own[:rank - len(fn.event_shape)]
            raise ShapeError("the value has the wrong shape", site=name, found=value.shape,
                             expected=f"batch {batch} + event {tuple(fn.event_shape)}",
                             fix="pass one value per element, or what can be broadcast to it"
                             + (f"; many of one kind go into a plate: with numpyro.plate('n', "
                                f"{value.shape[0]}): .." if many else ""))
        if jnp.issubdtype(value.dtype, jnp.complexfloating):
            raise ShapeError("the value has the wrong dtype", site=name, found=value.dtype,
                             expected="real numbers", fix="pass floats")
        present = ~jnp.isnan(value)
        params["value"], whole = jnp.asarray(given), fn
        fn, value = mask_missing(fn, value)
    base, mask = unwrapped(fn, shape)
    amortized = isinstance(base, Amortized)
    if amortized and value is not None:
        value = as_network_takes(base.message, value)
    if value is not None and not amortized:
        value = marked(base, value)
        params |= {f"bound {i}": x for i, x in enumerate(bounds(base))}
    likelihood = None if value is None else likelihood_of(base, value)
    if amortized:
        base, given = _message(name, base, value, params)
        if base is None:
            return Described("amortized", {}, True, tuple(fn.event_shape))
        shape, mask = given, _to_batch(mask, fn)
        mask = None if mask is None else mask[..., None]
    transform, values = None, _values(base, value is None)
    if step and value is None and isinstance(base, dist.LogNormal):
        # Of a state: its log is a Gaussian, as states are.
        transform = Transformation(*reversed(jax.tree.flatten(ExpTransform())))
        base = base.base_dist
    family, found = _parameters(base, shape, value)
    if values and not FAMILIES[family].discrete:
        family, found = "categorical", {}
    if values:
        likelihood = likelihood or likelihood_of(base, None)
        if value is None and fn.event_dim:
            raise StructureError(
                "several discrete latents are one event", site=name,
                found=f"event shape {tuple(fn.event_shape)}", expected="each for itself",
                fix=f"leave out to_event and put them into a plate: with numpyro.plate('n', "
                    f"{fn.event_shape[-1]}): {name} = .., with what sees one of them each")
    if family == "unknown" and value is None and _is_differentiable(base):
        # Of a latent the density of u, x = T(u); its value is put in by the trace.
        family, unconstrained = "transformed", Unconstrained(base)
        transform = Transformation(*reversed(jax.tree.flatten(unconstrained.transform)))
        shape = unconstrained.transform.inverse_shape(shape)
        likelihood = likelihood_of(unconstrained, None)
    rules = FAMILIES[family]
    elementwise = rules.elementwise and (bool(found) or not base.event_dim)
    params.update(found)
    if partial and rules.location and not amortized:    # the rest of an event stays data
        params["present"] = present.astype(jnp.result_type(float))
        mask = unwrapped(without_gaps(whole), shape)[1]
    weight = None if mask is None else mask.astype(jnp.result_type(float))
    if scale is not None:
        factor = jnp.asarray(scale, jnp.result_type(float))
        # An amortised site is a Gaussian over one vector, whatever the event that its data are.
        events = 1 if amortized else len(fn.event_shape)
        factor = factor.reshape(factor.shape + (1,) * events)
        if jnp.broadcast_shapes(factor.shape, shape) != shape and not amortized:
            raise ShapeError("handlers.scale does not fit the site", site=name,
                             found=f"scale of shape {jnp.shape(scale)}",
                             expected=f"broadcastable to batch shape {tuple(fn.batch_shape)}",
                             fix="give one weight per element of the batch; inside a scan, put "
                                 "handlers.scale into the body")
        weight = factor if weight is None else weight * factor
    if weight is not None and (found or likelihood is not None):
        if not elementwise:
            weight = weight.reshape((1,) * (len(shape) - weight.ndim) + weight.shape)
            events = tuple(range(len(shape) - getattr(base, "event_dim", 0), len(shape)))
            weight = weight.min(axis=events, keepdims=True)
        params["weight"] = weight
    # An amortised site is a Gaussian over what its message is about; each of several vectors that
    # `to_event` made one event has a matrix of its own.
    event = len(shape) - len(fn.batch_shape)
    if rules.by_matrix and not rules.discrete and not amortized:
        event = min(event, base.event_dim)
    return Described(family, params, amortized, shape[len(shape) - event:],
                     type(base).__name__, likelihood, transform, values)


def _values(base: dist.Distribution, latent: bool) -> tuple[int, ...]:
    """What a discrete latent (or an observed site of such probabilities) may be, () if not few."""
    probs = getattr(base, "probs", None)
    if isinstance(base, dist.CategoricalProbs):
        return tuple(range(jnp.shape(probs)[-1]))
    if latent and isinstance(base, dist.CategoricalLogits):
        return tuple(range(jnp.shape(base.logits)[-1]))
    if latent and isinstance(base, dist.BernoulliProbs | dist.BernoulliLogits):
        return (0, 1)
    if latent and isinstance(base, dist.DiscreteUniform):
        try:
            low, high = (int(np.max(x)) for x in (base.low, base.high))
        except jax.errors.ConcretizationTypeError:
            return ()
        return tuple(range(low, high + 1))
    return ()


def _is_differentiable(base: dist.Distribution) -> bool:
    """Whether it is a density over a support that NumPyro has a map to from real numbers."""
    if base.is_discrete or isinstance(base, dist.Delta | dist.Unit | Amortized):
        return False
    try:
        biject_to(base.support)
    except NotImplementedError:
        return False
    return True


def _to_batch(mask: Array | None, fn: dist.Distribution) -> Array | None:
    if mask is None:
        return None
    events = tuple(range(mask.ndim - fn.event_dim, mask.ndim))
    return mask.all(axis=events)


def _message(name: str, fn: Amortized, value: Array | None, params: dict[str, Array]
             ) -> tuple[dist.Distribution | None, tuple[int, ...]]:
    """The encoder's potential as the density of a pseudo-observation m under N(on, P^-1)."""
    if value is None:
        return None, ()
    sent = fn.message(value)
    on = jnp.asarray(fn.on)
    if tuple(sent.batch_shape) + tuple(sent.event_shape) != on.shape:
        raise ShapeError("the encoder's message does not fit what it is about", site=name,
                         found=f"a message of shape {tuple(sent.batch_shape)} + "
                               f"{tuple(sent.event_shape)}",
                         expected=f"shape {on.shape}, that of `on`",
                         fix="let `message` return one Gaussian over `on` for every frame")
    base, _ = unwrapped(sent, on.shape)
    family, found = _parameters(base, on.shape, value)
    if not FAMILIES[family].location:
        raise ShapeError("the encoder's message is not Gaussian", site=name,
                         found=type(base).__name__, expected="Normal or MultivariateNormal",
                         fix="return dist.Normal(mean, std).to_event(1)")
    params["value"] = found["loc"]
    return _Shifted(base, on), on.shape


class _Shifted:
    """A Gaussian whose location has been replaced: the residual is m(y) - on."""

    def __init__(self, base: dist.Distribution, loc: Array) -> None:
        self.base, self.loc = base, loc
        self.event_dim = base.event_dim


def _parameters(fn: object, shape: tuple[int, ...], data: Array | None
                ) -> tuple[str, dict[str, Array]]:
    """(family, parameters) of a distribution of a shape; data: its value, None of a latent."""
    loc = fn.loc if isinstance(fn, _Shifted) else getattr(fn, "loc", None)
    base = fn.base if isinstance(fn, _Shifted) else fn

    def real(array: ArrayLike) -> Array:
        """Normal(0, 1) is a distribution over real numbers too."""
        array = jnp.asarray(array)
        return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)

    def full(array: ArrayLike) -> Array:
        return jnp.broadcast_to(real(array), shape)

    def matrix(array: ArrayLike, event_dim: int = 1) -> Array:
        array = real(array)
        return array.reshape((1,) * (len(shape) - event_dim + 2 - array.ndim) + array.shape)

    if isinstance(base, dist.Normal):
        return "normal", {"loc": full(loc), "scale": full(base.scale)}
    if isinstance(base, dist.MultivariateNormal):
        key = FAMILIES["mvn"].noise_key(vars(base))
        return "mvn", {"loc": full(loc), key: matrix(getattr(base, key))}
    if isinstance(base, dist.LowRankMultivariateNormal):
        return "mvn", {"loc": full(loc), "covariance_matrix": matrix(base.covariance_matrix)}
    if isinstance(base, dist.CAR):
        return "mvn", {"loc": full(loc), "precision_matrix": matrix(base.precision_matrix)}
    if isinstance(base, dist.MatrixNormal):
        rows, columns = base.scale_tril_row, base.scale_tril_column
        kron = jnp.einsum("...ij,...kl->...ikjl", rows, columns)
        n = rows.shape[-1] * columns.shape[-1]
        return "mvn", {"loc": full(loc), "row": rows, "column": columns,
                       "scale_tril": matrix(kron.reshape((*kron.shape[:-4], n, n)), 2)}
    if isinstance(base, ArrayNormal):
        return "mvn", {"loc": full(loc),
                       "covariance_matrix": matrix(base.covariance, base.event_dim)}
    if isinstance(base, dist.Exponential):
        return "gamma", {"concentration": full(jnp.ones(())), "rate": full(base.rate)}
    if isinstance(base, dist.Gamma):
        return "gamma", {"concentration": full(base.concentration), "rate": full(base.rate)}
    if isinstance(base, dist.Beta) and data is None:
        both = full(base.concentration1), full(base.concentration0)
        return "beta", {"concentration": jnp.stack(both, -1)}
    if isinstance(base, dist.BernoulliProbs) and data is None:
        return "bernoulli", {"probs": full(base.probs)}
    if (tallied := tally(base, data)) is not None:
        return "binomial", {"probs": full(base.probs),
                             "tally": jnp.stack([full(x) for x in tallied], -1)}
    if isinstance(base, dist.Poisson) and data is not None:
        return "poisson", {"rate": full(base.rate)}
    if isinstance(base, dist.CategoricalProbs):
        probs = real(base.probs)
        return "categorical", {"probs": jnp.broadcast_to(probs, (*shape, probs.shape[-1]))}
    if isinstance(base, dist.MultinomialProbs):
        return "multinomial", {"probs": full(base.probs)}
    if isinstance(base, dist.Dirichlet):
        return "dirichlet", {"concentration": full(base.concentration)}
    if isinstance(base, dist.Wishart):
        chol = base.base_dist
        key = FAMILIES["wishart"].noise_key(vars(chol))
        return "wishart", {"concentration": jnp.broadcast_to(chol.concentration, shape[:-2]),
                           key: full(getattr(chol, key))}
    return "unknown", {}
