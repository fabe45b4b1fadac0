"""The lengths of the series of a scan, checked before it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.extend.core import Var
from numpyro.primitives import Messenger

from jopa_ppl.errors import JopaError, ShapeError, names


def check_lengths(f: Callable, init: Any, xs: Any, length: int | None) -> None:
    """Refuse series that do not fit a scan of `length` steps, naming the sites that see them.

    Args:
        f, init, xs, length: as of `jp.scan`.

    Raises:
        ShapeError: no series and no length, a series without a time axis, unequal lengths, or none;
            a length that is no whole number.
    """
    if length is not None and not isinstance(length, int | np.integer):
        raise ShapeError("a scan takes a whole number of steps", found=f"length={length!r}",
                         expected="an int", fix="pass int(length), not an array or a float")
    series = {"xs" + jax.tree_util.keystr(path): leaf
              for path, leaf in jax.tree_util.tree_leaves_with_path(xs)}
    scalars = [s for s, leaf in series.items() if np.ndim(leaf) == 0]
    steps = {s: np.shape(leaf)[0] for s, leaf in series.items() if s not in scalars}
    lengths = {*steps.values()} | ({length} if length is not None else set())
    if not scalars and len(lengths) == 1 and min(lengths) >= 1:
        return
    readers = _readers(f, init, xs, list(series))
    everything = readers.get("", [])

    def error(what: str, odd: list[str], found: str, expected: str, fix: str) -> ShapeError:
        sites = [n for s in odd for n in readers.get(s, ())] or everything
        return ShapeError(what, site=sites[0] if sites else None, found=found, expected=expected,
                          fix=fix)

    def told(s: str) -> str:
        size = f"of length {steps[s]}" if s in steps else "without an axis"
        return f"{s} {size}" + (f" (read by {names(readers[s])})" if s in readers else "")

    asked = "" if length is None else f", length={length}"
    if scalars:
        raise error("scan needs series with a leading time axis", scalars,
                    "; ".join(map(told, scalars)), "arrays of shape (T, ...)",
                    "make lists arrays (np.asarray), and close over constants")
    if not lengths:
        whose = f" in the scan of {names(everything)}" if everything else ""
        raise error("scan does not know how many steps to take", [],
                    f"xs=None, length=None{whose}", "a series or a length", "pass length=T")
    if len(lengths) > 1:
        wanted = length if length is not None else max(steps.values())
        raise error("the series and the scan differ in length",
                    [s for s, n in steps.items() if n != wanted],
                    "; ".join(map(told, steps)) + asked, "one length for all",
                    "cut the series to T, or fill it up with NaN (jp.sparse builds such an array)")
    raise error("the series is empty", list(steps), "; ".join(map(told, steps)) + asked,
                "at least one step", "pass at least one frame")


class _Recorder(Messenger):
    """Draws zeros at latents, so that only what the body was given reaches a site."""

    def __init__(self) -> None:
        super().__init__(None)
        self.data: dict[str, list[Array]] = {}
        self.latents: dict[str, list[Array]] = {}

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "sample":
            given = [x for x in jax.tree.leaves((msg["fn"], msg["value"])) if hasattr(x, "dtype")]
            (self.latents if msg["value"] is None else self.data)[msg["name"]] = given
            if msg["value"] is None:
                msg["value"] = jnp.zeros(msg["fn"].shape())


def _readers(f: Callable, init: Any, xs: Any, series: list[str]) -> dict[str, list[str]]:
    """The sites of a scan's body that read each series, data before latents; "" for all sites.

    The body is traced once on one made-up step; {} where it cannot be.
    """
    recorder = _Recorder()

    def body(*leaves: Array) -> dict[str, list[Array]]:
        with numpyro.handlers.block(), numpyro.handlers.seed(rng_seed=0), recorder:
            f(init, jax.tree.unflatten(jax.tree.structure(xs), leaves))
        return {**recorder.data, **recorder.latents}

    try:
        step = [jax.ShapeDtypeStruct(np.shape(x)[1:], jnp.result_type(x))
                for x in jax.tree.leaves(xs)]
        jaxpr = jax.make_jaxpr(body)(*step).jaxpr
    except JopaError as error:
        return {"": [error.site]} if error.site else {}
    except Exception:       # whatever a user's body raises must not hide the error on its way
        return {}
    reach: dict[Var, set[str]] = {v: {s} for v, s in zip(jaxpr.invars, series)}

    def reaching(atoms: Iterable[Any]) -> set[str]:
        return set().union(*(reach.get(v, ()) for v in atoms if isinstance(v, Var)))

    for eqn in jaxpr.eqns:
        reach |= dict.fromkeys(eqn.outvars, reaching(eqn.invars))
    found = {"": [*recorder.data, *recorder.latents]}
    outputs = iter(jaxpr.outvars)       # a dict's leaves come sorted by its keys
    for name, arrays in sorted({**recorder.data, **recorder.latents}.items()):
        for s in reaching(islice(outputs, len(arrays))):
            found.setdefault(s, []).append(name)
    return {s: sorted(n, key=found[""].index) for s, n in found.items()}
