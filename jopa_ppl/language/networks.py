"""Networks inside a program: their weights collected and replaced, and minibatches of a plate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from jax.tree_util import keystr, tree_flatten_with_path
from numpyro.primitives import Messenger

from jopa_ppl.compilation import once
from jopa_ppl.errors import SiteError, StructureError, names
from jopa_ppl.language.blame import named_faults
from jopa_ppl.language.primitives import WEIGHTS
from jopa_ppl.language.query import _Query
from jopa_ppl.language.tracing import tracing
from jopa_ppl.settings import is_traced, ours

Weights = dict[str, Any]


def _shapes(weights: Any) -> Any:
    return jax.tree.map(jnp.shape, weights)


class _Collect(Messenger):
    """Notes the weights of every network that a program declares."""

    def __init__(self) -> None:
        super().__init__(None)
        self.weights: Weights = {}

    def postprocess_message(self, msg: dict) -> None:
        if msg["type"] == "param" and msg["name"].endswith(WEIGHTS):
            name = msg["name"].removesuffix(WEIGHTS)
            if odd := [x.dtype for x in jax.tree.leaves(msg["value"])
                       if not jnp.issubdtype(jnp.result_type(x), jnp.floating)]:
                raise StructureError("a parameter of the network is not real", site=name,
                                     found=odd[0], expected="floating point numbers",
                                     fix="hold it in another kind of nnx.Variable than nnx.Param")
            other = jax.tree.leaves(self.weights.get(name, msg["value"]))
            if any(a is not b for a, b in zip_longest(other, jax.tree.leaves(msg["value"]))):
                raise SiteError("two networks have one name", site=name, found=f"'{name}' twice",
                                expected="a name of its own for each",
                                fix="rename one, or declare the network once and use it twice")
            self.weights[name] = msg["value"]


def weights_of(model: Callable, args: tuple, kwargs: dict) -> Weights:
    """The weights of the networks that the program declares with `jp.module`, by name.

    Raises:
        SiteError: two networks have one name. StructureError: one changes its own state, or has
            parameters that are not real.
    """
    found: Weights = {}

    def run() -> Weights:
        collect = _Collect()
        with (collect, numpyro.handlers.seed(rng_seed=0), numpyro.validation_enabled(False),
              named_faults()):
            model(*args, **kwargs)
        found.update(collect.weights)
        return collect.weights

    with tracing(), ours(double=False):
        jax.eval_shape(run)
        if is_traced(found):
            found = jax.jit(run, compiler_options=once())()       # networks that the program builds
    # With a dtype of their own: a weak type would be lost in training, and compile everything anew.
    strong = lambda a: jnp.array(a, jnp.result_type(a)) if getattr(a, "weak_type", True) else a
    return {n: jax.tree.map(strong, w) for n, w in found.items()}


class _Replace(Messenger):
    def __init__(self, weights: Weights) -> None:
        super().__init__(None)
        self.weights, self.seen = weights, set()

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "param" and msg["name"].endswith(WEIGHTS):
            name = msg["name"].removesuffix(WEIGHTS)
            self.seen.add(name)
            if name in self.weights:
                own = msg["args"][0]
                self._check(name, own)
                # In the dtype of the network: as data of a run they are in double.
                msg["value"] = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.result_type(old)),
                                            self.weights[name], own)

    def _check(self, name: str, own: Any) -> None:
        """Refuse weights that are not the network's."""
        shapes = [_shapes(w) for w in (self.weights[name], own)]
        if shapes[0] != shapes[1]:
            here, there = ({keystr(k): v for k, v in tree_flatten_with_path(
                s, is_leaf=lambda x: isinstance(x, tuple))[0]} for s in shapes)
            wrong = sorted(k for k in here | there if here.get(k) != there.get(k))
            raise SiteError("the weights are not this network's", site=name,
                            found=f"{len(wrong)} leaves differ, {wrong[0]} first: "
                            f"{here.get(wrong[0], 'missing')}",
                            expected=there.get(wrong[0], "no such leaf"),
                            fix="pass what jp.VariationalEM returned for this network; declare it "
                            "outside of scans, and hold a layer once that serves twice")


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
