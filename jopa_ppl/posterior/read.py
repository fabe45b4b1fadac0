"""Checkpoints: beliefs, weights and the state of a run in one safetensors file.

Beside the tensors of the posterior (`jopa_ppl.posterior.stored`) a file may hold

    weights/<module>/<path>     the parameters of networks
    extra/<path>                whatever a run needs to go on: its optimiser's state, its history
    rng_key                     the key data

so every checkpoint with a posterior is also a file for `jp.load_posterior`, and the reverse.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from jopa_ppl.errors import FileError
from jopa_ppl.language.keys import is_key, key_data
from jopa_ppl.language.query import program_of
from jopa_ppl.posterior import storage
from jopa_ppl.posterior.stored import StoredPosterior, restore
from jopa_ppl.settings import ours

_PATHS = {...: [str | int]}
_FORM = {"model": str, "checkpoint": {"step": int, "posterior": bool, "weights": _PATHS,
                                      "extra": _PATHS, "rng_key": str | None}}


@dataclass(frozen=True)
class Checkpoint:
    """What `jp.load_checkpoint` read; arrays have the dtypes they were saved with.

    Attributes:
        posterior: the beliefs, None where none were saved.
        weights: {module: nested dict of arrays}, or the structure asked for.
        step: steps done when it was saved.
        rng_key: the key of the run, None where none was saved.
        extra: {path: array}, or the structure asked for.
        header: versions, program, shapes, as read.
    """

    posterior: StoredPosterior | None
    weights: Any
    step: int
    rng_key: Array | None
    extra: Any
    header: dict[str, Any]


def load_checkpoint(path: str | os.PathLike, model: Callable | None = None, *,
                    weights: Any = None, extra: Any = None) -> Checkpoint:
    """Read a file that `jp.save_checkpoint` or `posterior.save` wrote.

    Args:
        model: the program it must belong to; None for any.
        weights, extra: pytrees of arrays or of `jax.ShapeDtypeStruct`, to check the file against
            and to fill; None for nested dicts (weights) and a flat dict by path (extra).

    Raises:
        FileError: no such file, damaged, of a newer format or of another program; tensors are
            missing, too many or of other shapes than its header or the given pytrees tell.
    """
    header, tensors = storage.read(path)
    own = header.pop("checkpoint", {"step": 0, "posterior": True, "weights": {}, "extra": {}})
    with storage.damaged(storage.HEADER, path), ours():    # dtypes stay as saved
        storage.expect({"model": "", **header, "checkpoint": {"rng_key": None, **own}}, _FORM)
        stored, wanted = header.get("model", "no program"), model and program_of(model)
        if wanted and _function(wanted) != _function(stored):
            raise FileError(
                "it belongs to another program", found=f"'{path}' of {stored!r}",
                expected=f"'{wanted}'", fix="load it with the program that it was saved of, or, "
                "where that has a new name now, save it again under it: jp.save_checkpoint(path, "
                "jp.load_posterior(path), jp.load_checkpoint(path).weights, model=program)")
        groups = {g: {n: jnp.asarray(tensors.pop(n)) for n in own[g]} for g in ("weights", "extra")}
        found = {"weights": _nest(groups["weights"], own["weights"]) if weights is None else None,
                 "extra": {n.removeprefix("extra/"): x for n, x in groups["extra"].items()}}
        key = jnp.asarray(tensors.pop("rng_key")) if "rng_key" in own else None
        if key is not None and own["rng_key"] is not None:
            key = random.wrap_key_data(key, impl=own["rng_key"])
        posterior = restore(header, tensors) if own["posterior"] else None
    found |= {g: _fill(path, g, groups[g], like)
              for g, like in (("weights", weights), ("extra", extra)) if like is not None}
    return Checkpoint(posterior, found["weights"], own["step"], key, found["extra"],
                      {**header, "checkpoint": own})


def load_posterior(path: str | os.PathLike) -> StoredPosterior:
    """Read the posterior of a file; the model is not needed.

    Beliefs come back exactly (float64), joint ones jointly, so `jp.given(model, loaded)` is
    `jp.given(model, posterior)`. What needs the model (`predict`) or the data is not there.

    Raises:
        FileError: as `jp.load_checkpoint`, or the file holds no posterior.
    """
    posterior = load_checkpoint(path).posterior
    if posterior is None:
        raise FileError("it holds no posterior", found=f"'{path}' with weights alone",
                        expected="a file written by posterior.save(path)",
                        fix="read it with jp.load_checkpoint(path)")
    return posterior


def _fill(path: Any, group: str, arrays: dict[str, Array], like: Any) -> Any:
    """A group's arrays in the structure of `like`."""
    wanted = {f"{group}/{n}": leaf for n, leaf in storage.flat(like).items()}
    shapes = {n: np.shape(key_data(leaf)) for n, leaf in wanted.items()}
    storage.check(shapes, arrays, f"'{path}'", f"of {group}=",
                  "pass the structure that it was saved with, or the same program and sizes")
    leaves = [random.wrap_key_data(arrays[n], impl=random.key_impl(leaf)) if is_key(leaf)
              else arrays[n] for n, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _nest(arrays: dict[str, Array], keys: dict[str, list]) -> dict:
    """Arrays by path as nested dicts."""
    root: dict = {}
    for name, x in arrays.items():
        *inside, last = keys[name] or [""]
        node = root
        for k in inside:
            node = node.setdefault(k, {})
        if last in node:
            raise ValueError(f"two tensors have the path {keys[name]}")
        node[last] = x
    return root


def _function(model: str) -> str:
    """A program keeps its name when its module moves, or runs as a script."""
    return model.rpartition(":")[2]
