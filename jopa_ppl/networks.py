"""Networks inside a program: their weights collected and replaced, and minibatches of a plate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro.primitives import Messenger

from jopa_ppl.errors import SiteError, names
from jopa_ppl.primitives import WEIGHTS
from jopa_ppl.queries import _Query

Weights = dict[str, Any]


class _Collect(Messenger):
    """Notes the weights of every network that a program declares."""

    def __init__(self) -> None:
        super().__init__(None)
        self.weights: Weights = {}

    def postprocess_message(self, msg: dict) -> None:
        if msg["type"] == "param" and msg["name"].endswith(WEIGHTS):
            self.weights[msg["name"].removesuffix(WEIGHTS)] = msg["value"]


def weights_of(model: Callable, args: tuple, kwargs: dict) -> Weights:
    """The weights of the networks that the program declares with `jp.module`, by name."""
    collect = _Collect()

    def run() -> None:
        with collect, numpyro.handlers.seed(rng_seed=0), numpyro.validation_enabled(False):
            model(*args, **kwargs)

    jax.eval_shape(run)
    # With a dtype of their own: a weak type would be lost in training, and compile everything anew.
    strong = lambda a: jnp.array(a, jnp.result_type(a)) if getattr(a, "weak_type", True) else a
    return {n: jax.tree.map(strong, w) for n, w in collect.weights.items()}


class _Replace(Messenger):
    def __init__(self, weights: Weights) -> None:
        super().__init__(None)
        self.weights, self.seen = weights, set()

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "param" and msg["name"].endswith(WEIGHTS):
            name = msg["name"].removesuffix(WEIGHTS)
            self.seen.add(name)
            msg["value"] = self.weights.get(name)


@dataclass(frozen=True, eq=False, repr=False)
class WithWeights(_Query, data=("weights",)):
    """A model whose networks have other weights; made by `with_weights`."""

    weights: Weights

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        handler = _Replace(self.weights)
        with handler:
            out = self.fn(*args, **kwargs)
        unknown = sorted(set(self.weights) - handler.seen)
        if unknown:
            raise SiteError("unknown network in jp.with_weights", site=unknown[0],
                            found=f"'{unknown[0]}'",
                            expected=f"one of {names(sorted(handler.seen))}",
                            fix="declare it in the program: jp.module(name, network)")
        return out


def with_weights(model: Callable, weights: Mapping[str, Any]) -> WithWeights:
    """The model with its networks' weights replaced by `weights[name]`, pytrees as
    `jp.VariationalEM` returns them. Weights are data: other ones need no new compilation.

    Raises:
        SiteError (when run): a name is not a network of the program.
    """
    return WithWeights(model, dict(weights))


class _Pick(Messenger):
    """Restricts a plate to some of its elements, without NumPyro's scaling to the full size."""

    def __init__(self, plate: str, index: Array) -> None:
        super().__init__(None)
        self.plate, self.index = plate, index

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "plate" and msg["name"] == self.plate:
            self.size = msg["args"][0]
            msg["value"], msg["args"] = self.index, (self.size, len(self.index))
        elif msg["type"] == "sample":
            for frame in msg["cond_indep_stack"]:
                if frame.name == self.plate:
                    self._restrict(msg, frame.dim - msg["fn"].event_dim)

    def _restrict(self, msg: dict, axis: int) -> None:
        scale = msg["scale"] * len(self.index) / self.size
        msg["scale"] = None if isinstance(scale, float) and abs(scale - 1) < 1e-12 else scale
        value = msg["value"]
        if value is not None and value.ndim >= -axis and value.shape[axis] == self.size:
            msg["value"] = jnp.take(value, self.index, axis)


@dataclass(frozen=True, eq=False, repr=False)
class Minibatch(_Query, data=("index",)):
    """A model with the elements `index` of one of its plates, each counted once."""

    plate: str
    index: Array

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Pick(self.plate, self.index):
            return self.fn(*args, **kwargs)
