"""What a program is written with: latent, observe, scan, plate, sparse, Amortized.

Each is NumPyro's own primitive with a role, so the same program runs under NumPyro's engines.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jax import Array
from jax.typing import ArrayLike
from numpyro.contrib.control_flow import scan as numpyro_scan
from numpyro.distributions import constraints

from jopa_ppl.arrays import native
from jopa_ppl.errors import ShapeError, StructureError, is_whole
from jopa_ppl.language.missing import from_list, from_masked, mask_missing
from jopa_ppl.language.scan_lengths import check_lengths
from jopa_ppl.settings import ours

plate = numpyro.plate
WEIGHTS = "$params"     # NumPyro's suffix for the parameters of a network


def latent(name: str, fn: dist.Distribution) -> Array:
    """A quantity to be inferred: `numpyro.sample(name, fn)`.

    Under `jp.condition` it becomes data, under `jp.given` it takes an earlier belief as its prior.

    Args:
        name: of the site, by which posteriors and queries know it.
        fn: how it is drawn, any NumPyro distribution.

    Returns:
        a value of the site, of the shape of `fn` and of the plates around it.
    """
    return numpyro.sample(name, fn)


def observe(name: str, fn: dist.Distribution, obs: ArrayLike | None = None) -> Array:
    """A quantity seen through `fn`: `numpyro.sample(name, fn, obs=obs)` where NaN means missing,
    and so do the masked entries of a NumPy masked array.

    Missing entries send no message in VMP and are masked under SVI and NUTS; `obs=None` leaves the
    site to be predicted; data of `jp.condition` take the place of obs=. A row of a
    MultivariateNormal is one event: a NaN in it leaves out all of it (VMP warns), but where the
    data come from `jp.condition(model, {name: y})` every entry is used.

    Args:
        name: of the site.
        fn: how it is drawn, any NumPyro distribution.
        obs: data, an array or a list of the shape of `fn` and of the plates around it (NaN or None
            where missing); of a plate that subsamples, all of its elements. In a scan, those of
            one step.

    Returns:
        the data, with a value that can be where one is missing; a value of the site where
        `obs` is None.

    Raises:
        ShapeError: the trailing axes of `obs` are not the event shape of `fn`.
    """
    if obs is None:
        return numpyro.sample(name, fn)
    obs = native(from_list(from_masked(obs)))
    check_event(name, fn, obs)
    if np.shape(obs) != tuple(fn.shape()):
        obs = _subsampled(name, fn, obs)
    _check_batch(name, fn, obs)
    masked, clean = mask_missing(fn, obs)
    # What the mask hides from VMP: the axes of `fn` without it, and that gaps are no zeros.
    infer = {"jopa_rank": len(fn.shape()), "jopa_given": (clean, obs)}
    return numpyro.sample(name, masked, obs=clean, infer=infer)


def _subsampled(name: str, fn: dist.Distribution, obs: ArrayLike) -> ArrayLike:
    """`obs` subsampled as the plates around it are."""
    try:
        return numpyro.subsample(obs, event_dim=fn.event_dim)
    except ValueError as error:                                 # tells the plate and its size
        raise ShapeError("the value does not fit the plates around it", site=name,
                         found=f"shape {np.shape(obs)}: {error}", expected="one value per element",
                         fix="use NaN for what is missing") from None


def check_event(name: str, fn: dist.Distribution, value: ArrayLike) -> None:
    """Refuse a value whose trailing axes are not exactly the event shape."""
    shape = np.shape(value)
    event = tuple(fn.event_shape)
    if len(shape) < len(event) or shape[len(shape) - len(event):] != event:
        raise ShapeError(
            "the value has the wrong shape", site=name, found=f"shape {shape}",
            expected=f"event shape {event} (from {type(fn).__name__})",
            fix="pass one value per event; use NaN for what is missing")


def _check_batch(name: str, fn: dist.Distribution, value: ArrayLike) -> None:
    """Refuse a value whose other axes cannot be broadcast with the batch."""
    shape, event = np.shape(value), tuple(fn.event_shape)
    try:
        jnp.broadcast_shapes(shape[:len(shape) - len(event)], fn.batch_shape)
    except ValueError:
        raise ShapeError(
            "the value has the wrong shape", site=name, found=f"shape {shape}",
            expected=f"batch {tuple(fn.batch_shape)} + event {event}, or what can be broadcast "
            "to it", fix="pass one value per element; use NaN for what is missing") from None


def scan(f: Callable, init: Any, xs: Any = None, length: int | None = None) -> tuple[Any, Any]:
    """NumPyro's control-flow `scan`: same arguments, same results.

    Args:
        f: one step, (carry, x) -> (next carry, y), with the sites in it.
        init: the first carry, a pytree of arrays.
        xs: series, a pytree of arrays (T, ...), of which `f` gets one step at a time; or None.
        length: T; None where `xs` tells it.

    Returns:
        the last carry, and the y of all steps, (T, ...).

    Raises:
        ShapeError: the series is empty, longer than `length`, or of unequal lengths.
    """
    init, xs = from_masked((init, xs))
    check_lengths(f, init, xs, length)
    return numpyro_scan(f, init, xs, length=length)


def sparse(length: int, values: Mapping[int, ArrayLike]) -> Array:
    """An array of `length` steps that is NaN (missing) but at the given steps, and where NumPy's
    masked arrays are masked.

    Args:
        length: number of steps T.
        values: {step: value}, all of one shape (...); negative steps count from the end.

    Returns:
        array (T, ...).

    Raises:
        ShapeError: no steps or values, a step that is no whole number, is outside the series or
            named twice, or unequal shapes.
    """
    try:
        values = dict(values)
    except (TypeError, ValueError):
        raise ShapeError("jp.sparse takes values by step", found=repr(values)[:40],
                         expected="{step: value}", fix="name their steps: dict(enumerate(values))"
                         ) from None
    if not values:
        raise ShapeError("jp.sparse needs at least one value", found="{}",
                         expected="{step: value}", fix="pass obs=None where nothing is observed")
    if not is_whole(length) or length < 1:
        raise ShapeError("jp.sparse needs at least one step", found=f"length {length!r}",
                         expected="a whole number, length >= 1", fix="check the horizon")
    length = operator.index(length)
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(values))
    values = from_masked(values)
    arrays = {k: jnp.asarray(v) if traced else np.asarray(v) for k, v in values.items()}
    shapes = {a.shape for a in arrays.values()}
    if len(shapes) > 1:
        raise ShapeError("the values of jp.sparse differ in shape", found=sorted(shapes),
                         expected="one shape", fix="give every step a value of the same shape")
    dtype = np.result_type(np.float32, *(a.dtype for a in arrays.values()))
    out = np.full((length, *shapes.pop()), np.nan, dtype)
    out = jnp.asarray(out) if traced else out
    taken: set[int] = set()
    for step, value in arrays.items():
        if not isinstance(step, int | np.integer):
            raise ShapeError("a step of jp.sparse is no whole number", found=f"step {step!r}",
                             expected=f"distinct steps in [{-length}, {length})",
                             fix="round it: steps count from 0")
        index = step + length if step < 0 else step
        if not 0 <= index < length or index in taken:
            raise ShapeError(
                "a step of jp.sparse is " + ("named twice" if index in taken else "out of range"),
                found=f"step {step}", expected=f"distinct steps in [{-length}, {length})",
                fix="check the horizon and the indices")
        taken.add(index)
        if traced:
            out = out.at[index].set(value)
        else:
            out[index] = value
    with ours(out, double=False):
        return jnp.asarray(native(out))


def module(name: str, network: nnx.Module) -> nnx.Module:
    """Declare a Flax NNX network in a program: its weights are the NumPyro parameter "name$params".

    VMP uses the weights as they are, `jp.VariationalEM` and SVI train them. Declare it outside of
    scans and use the module that is returned; all its methods are there. What a network holds
    beside its parameters (batch statistics) stays as it is: call `network.eval()` first.

    Args:
        name: of the network, by which its parameter is known.
        network: an instance of `flax.nnx.Module`.

    Returns:
        the network with the weights that the parameter holds.

    Raises (when run):
        StructureError: it is no NNX module, or changes its own state (dropout, batch statistics in
            training).
    """
    if not isinstance(network, nnx.Module):
        raise StructureError("the network is no Flax NNX module", site=name,
                             found=f"the class {network.__name__}" if isinstance(network, type)
                             else type(network).__name__, expected="an instance of flax.nnx.Module",
                             fix="pass one: nnx.Linear(2, 3, rngs=nnx.Rngs(0)), for instance")
    graph, weights, rest = nnx.split(network, nnx.Param, ...)
    values = numpyro.param(name + WEIGHTS, nnx.to_pure_dict(weights))
    nnx.replace_by_pure_dict(weights, values)
    return nnx.merge(graph, weights, rest)


class Amortized(dist.Distribution):
    """A likelihood p(y | x) that carries a learned Gaussian message to x.

        VMP:          log p(y | x)  ~  log N(on; m(y), P(y)^-1)     (the encoder's potential)
        SVI and NUTS: log p(y | x)      exactly, through the decoder

    Args:
        likelihood: p(y | x), any NumPyro distribution.
        on: what the message is about, an affine function of latents, shape (d,).
        message: y -> Normal(m, s).to_event(1) or MultivariateNormal over `on`.

    Source: Johnson et al. 2016, "Composing graphical models with neural networks", section 4.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    pytree_data_fields = ("likelihood", "on")
    pytree_aux_fields = ("message",)

    def __init__(self, likelihood: dist.Distribution, *, on: Array,
                 message: Callable[[Array], dist.Distribution]) -> None:
        self.likelihood, self.on, self.message = likelihood, on, message
        super().__init__(likelihood.batch_shape, likelihood.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.likelihood.support

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.likelihood.sample(key, sample_shape)

    def log_prob(self, value: Array) -> Array:
        return self.likelihood.log_prob(value)

    @property
    def mean(self) -> Array:
        return self.likelihood.mean

    @property
    def variance(self) -> Array:
        return self.likelihood.variance
