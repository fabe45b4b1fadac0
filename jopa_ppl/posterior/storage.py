"""Tensors on disk: one safetensors file with a JSON header, written whole or not at all.

The header's own entries are `format`, `versions` (of what wrote it), `shapes` and `dtypes` (of
every tensor); the caller adds the rest. Beside it stands `sha256`, a checksum over both.
Dtypes and checksum are missing in files older than they. Nothing in a file is ever executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import jax
import numpy as np
import numpyro
from jax.tree_util import keystr, tree_flatten_with_path
from safetensors import safe_open
from safetensors.numpy import save

from jopa_ppl.atomic import write_whole
from jopa_ppl.errors import FileError, names
from jopa_ppl.settings import refuse_forked
from jopa_ppl.version import __version__

FORMAT = 2           # 1: what a factor reads was told by text, "x@-1"
KEY, CHECKSUM = "jopa_ppl", "sha256"      # the entries of the file's metadata
HEADER = "the header of the file is damaged"

_EXPECTED = "a file written by posterior.save(path) or jp.save_checkpoint(path, ...)"


def versions() -> dict[str, str]:
    """Versions of this library and of what its numbers come from."""
    return {"jopa_ppl": __version__, "jax": jax.__version__,
            "numpyro": numpyro.__version__}


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path, "a/b/0"."""
    return {keystr(at, simple=True, separator="/"): leaf
            for at, leaf in tree_flatten_with_path(tree)[0]}


def write(path: str | os.PathLike, header: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Write header (what `json` can hold) and arrays by name, and a checksum over all of it.

    Raises:
        FileError: the file cannot be written; an old file of that name is then still there.
    """
    try:
        arrays = {name: _native(tensor) for name, tensor in tensors.items()}
        told = {"shapes": {name: list(array.shape) for name, array in arrays.items()},
                "dtypes": {name: str(array.dtype) for name, array in arrays.items()}}
        text = json.dumps({"format": FORMAT, "versions": versions(), **header, **told},
                          sort_keys=True)
        content = save(arrays, {KEY: text, CHECKSUM: checksum(text, arrays)})
        write_whole(os.fsdecode(path), lambda file: file.writelines(_ordered(content)))
    except Exception as error:
        raise FileError("the file cannot be written", found=repr(error),
                        expected=f"to write arrays of numbers to {str(path)!r}",
                        fix="check that the directory exists and may be written to") from error


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and tensors of a file that `write` wrote.

    Raises:
        FileError: no such file, not one of ours, of a newer format, damaged (its checksum differs;
            files of before there were checksums are read without), or with tensors other than its
            header says.
    """
    try:
        found = os.path.isfile(os.fsdecode(path))
    except (TypeError, ValueError):
        found = False
    if not found:
        raise FileError("there is no such file", found=repr(str(path)), expected=_EXPECTED,
                        fix="check the path")
    with damaged("it is not a safetensors file, or damaged", path):
        with safe_open(os.fsdecode(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    if KEY not in metadata:
        raise FileError("it is not a saved posterior or checkpoint",
                        found=f"'{path}' with metadata {names(metadata)}", expected=_EXPECTED,
                        fix="write it with posterior.save(path) or jp.save_checkpoint")
    with damaged(HEADER, path):
        header = json.loads(metadata[KEY])
        expect(header, {"format": int})
        if header["format"] > FORMAT:
            raise FileError("the file is of a newer version",
                            found=f"format {header['format']}, written by {header.get('versions')}",
                            expected=f"format {FORMAT} or older (jopa_ppl {__version__})",
                            fix="upgrade jopa_ppl")
        if "shapes" in header:
            expect(header["shapes"], {...: [int]})
            check(header["shapes"], tensors, f"'{path}'", "its header tells", "save it again")
        if "dtypes" in header and header["dtypes"] != {n: str(x.dtype) for n, x in tensors.items()}:
            raise TypeError("its tensors have other dtypes than the header tells")
        known = {KEY: metadata[KEY]}
        if CHECKSUM in metadata:
            known[CHECKSUM] = checksum(metadata[KEY], tensors)
    if metadata != known:
        raise FileError("the file is damaged: its checksum differs", found=f"'{path}'",
                        expected="what was written", fix="copy it again from where it was whole, "
                        "or save it again")
    return header, tensors


def _ordered(content: bytes) -> tuple[bytes, memoryview]:
    """The header of a safetensors file with its entries in order (they are written in any), and the
    rest: what is saved twice has the same bytes."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, ensure_ascii=False,
                        separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, memoryview(content)[end:]


def _native(tensor: Any) -> np.ndarray:
    """As safetensors gives it back: in C order and this machine's byte order."""
    array = np.asarray(tensor, order="C")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def checksum(header: str, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the header, and over every tensor's name, dtype, shape and bytes."""
    digest = sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))
    return digest.hexdigest()


@contextmanager
def damaged(what: str, path: object) -> Iterator[None]:
    """Whatever a file breaks on being read, in whichever way, is a FileError that says `what`."""
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        refuse_forked()              # which is no fault of the file
        raise FileError(what, found=f"'{path}': {error!r}", expected=_EXPECTED,
                        fix="save it again") from error


def check(wanted: Mapping[str, Any], tensors: Mapping[str, np.ndarray], where: str, by: str,
          fix: str) -> None:
    """Refuse tensors that are not exactly those wanted.

    Args:
        wanted: {name: shape}; tensors: {name: array}.
        where: what holds them; by: what wants them; fix: what to do, all for the message.

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


def expect(value: Any, form: Any, where: str = "the header") -> None:
    """Refuse what JSON held unless it has the wanted form.

    A form is a type, [form] (a list of such), a tuple of forms (a list of that length), {name:
    form} (other names may be there too) or {...: form} (under every name).

    Raises:
        TypeError: it has another form; the error names the place.
    """
    kind = {list: list, tuple: list, dict: dict}.get(type(form), form)
    if not isinstance(value, kind):
        raise TypeError(f"{where} is {value!r:.80}, expected {getattr(kind, '__name__', kind)}")
    if isinstance(form, tuple) and len(value) != len(form):
        raise TypeError(f"{where} has {len(value)} entries, expected {len(form)}")
    if isinstance(form, list | tuple):
        for i, item in enumerate(value):
            expect(item, form[i if isinstance(form, tuple) else 0], f"{where}[{i}]")
    elif isinstance(form, dict):
        for name, inner in (dict.fromkeys(value, form[...]) if ... in form else form).items():
            if name not in value:
                raise TypeError(f"{where} has no entry '{name}'")
            expect(value[name], inner, f"{where}['{name}']")
