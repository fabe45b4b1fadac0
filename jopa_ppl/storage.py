"""Tensors on disk: one safetensors file with a JSON header, written whole or not at all.

The header's own entries are `format`, `versions` (of what wrote it) and `shapes` (of every
tensor); the caller adds the rest. Nothing in a file is ever executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import jopa_ppl
from jopa_ppl.errors import FileError, names

FORMAT = 1
KEY = "jopa_ppl"

_EXPECTED = "a file written by posterior.save(path) or jp.save_checkpoint(path, ...)"


def versions() -> dict[str, str]:
    """Versions of this library and of what its numbers come from."""
    return {"jopa_ppl": jopa_ppl.__version__, "jax": jax.__version__,
            "numpyro": version("numpyro")}


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path, "a/b/0"."""
    return {keystr(at, simple=True, separator="/"): leaf
            for at, leaf in tree_flatten_with_path(tree)[0]}


def write(path: str | os.PathLike, header: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Write header (what `json` can hold) and arrays by name.

    Raises:
        FileError: the file cannot be written; an old file of that name is then still there.
    """
    path = Path(path)
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    shapes = {name: list(array.shape) for name, array in sorted(arrays.items())}
    header = {"format": FORMAT, "versions": versions(), **header, "shapes": shapes}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(arrays, part, {KEY: json.dumps(header, sort_keys=True)})
        os.replace(part, path)
    except (OSError, SafetensorError, KeyError) as error:
        raise FileError("the file cannot be written", found=repr(error),
                        expected=f"to write arrays of numbers to '{path}'",
                        fix="check that the directory exists and may be written to") from error
    finally:
        part.unlink(missing_ok=True)


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and tensors of a file that `write` wrote.

    Raises:
        FileError: no such file, not one of ours, of a newer format, cut off, or with tensors other
            than its header says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError("there is no such file", found=f"'{path}'", expected=_EXPECTED,
                        fix="check the path")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise FileError("it is not a safetensors file, or damaged", found=f"'{path}': {error}",
                        expected=_EXPECTED, fix="save it again") from error
    try:
        header = json.loads(metadata[KEY])
        number, shapes = int(header["format"]), header.get("shapes", {})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError("it is not a saved posterior or checkpoint",
                        found=f"'{path}' with metadata {names(metadata)}", expected=_EXPECTED,
                        fix="write it with posterior.save(path) or jp.save_checkpoint") from error
    if number > FORMAT:
        raise FileError("the file is of a newer version",
                        found=f"format {number}, written by {header.get('versions')}",
                        expected=f"format {FORMAT} or older (jopa_ppl {jopa_ppl.__version__})",
                        fix="upgrade jopa_ppl")
    if "shapes" in header:
        check(shapes, tensors, f"'{path}'", "its header tells", "save it again")
    return header, tensors


def check(wanted: Mapping[str, Any], tensors: Mapping[str, np.ndarray], where: str, by: str,
          fix: str) -> None:
    """Refuse tensors that are not exactly those wanted, {name: shape}.

    Raises:
        FileError: tensors are missing, too many, or of another shape.
    """
    expected = f"the {len(wanted)} tensors {by}"
    if missing := [n for n in wanted if n not in tensors]:
        raise FileError("tensors are missing", found=f"{where} without {names(missing)}",
                        expected=expected, fix=fix)
    if extra := [n for n in tensors if n not in wanted]:
        raise FileError("there are tensors that do not belong", found=f"{where} with "
                        f"{names(extra)}", expected=expected, fix=fix)
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != tuple(shape):
            raise FileError(f"tensor '{name}' has the wrong shape",
                            found=f"{tuple(tensors[name].shape)} in {where}",
                            expected=f"{tuple(shape)}, as {by}", fix=fix)
