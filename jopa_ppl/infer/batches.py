"""Many runs of one compiled program at once: `VMP.run_batch` and what it returns."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.tree_util import tree_flatten_with_path

from jopa_ppl.compilation import often, once
from jopa_ppl.engine.compiled import CHUNK, Compiled, Options, compiled_for
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.marginals import parts
from jopa_ppl.engine.outcome import after
from jopa_ppl.engine.signature import own
from jopa_ppl.engine.state import State
from jopa_ppl.errors import JopaError, ShapeError, SiteError, names
from jopa_ppl.language.missing import from_masked
from jopa_ppl.language.query import unwrapped
from jopa_ppl.posterior.inferred import outward
from jopa_ppl.posterior.posterior import Posterior
from jopa_ppl.settings import ours, under_ours


class PosteriorBatch:
    """The posteriors of many runs: `batch[i]` is a `Posterior`, `.mean(name)` has all of them.

    Attributes:
        free_energy: (batch,) of the last sweep, in nats; converged, num_iters: (batch,).
    """

    def __init__(self, make: Callable[[int], Posterior], shaped: Callable[[], dict], told: Any,
                 transformed: tuple[str, ...]) -> None:
        self._make, self._shaped, self._transformed = make, shaped, transformed
        self.free_energy = np.asarray(told.free_energy)
        self.converged = np.asarray(told.converged, bool)
        self.num_iters = np.asarray(told.sweep, int)

    def __reduce__(self) -> tuple:
        """Pickled as its posteriors are, each as `save` writes it."""
        sites = {n: tuple(map(np.asarray, found[:2])) for n, found in self._sites.items()}
        told = _Told(self.free_energy, self.converged, self.num_iters)
        return _batch_of, (list(self), sites, told)

    def __len__(self) -> int:
        return len(self.free_energy)

    def __getitem__(self, index: int) -> Posterior:
        if not isinstance(index, int | np.integer):
            raise JopaError("a run of a batch is named by its number", found=repr(index),
                            expected=f"a number in [{-len(self)}, {len(self)})",
                            fix="batch.mean(name) and .variance(name) have a site of all runs, "
                                "batch[0][name] its distribution in one")
        if not -len(self) <= index < len(self):
            raise IndexError(f"run {index} of a batch of {len(self)}")
        return self._make(int(index) % len(self))

    def __iter__(self) -> Iterator[Posterior]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"PosteriorBatch({len(self)} runs, sites={list(self._sites)})"

    @cached_property
    def _sites(self) -> dict[str, tuple]:
        found = dict(self._shaped())
        for name in self._transformed:              # told of x = T(u), T of every run
            found[name] = (jnp.stack([one.mean(name) for one in self]),
                           jnp.stack([one.variance(name) for one in self]))
        return found

    def _site(self, name: str) -> tuple:
        if not isinstance(name, str) or name not in self._sites:
            self[0].mean(name)                  # tells what is wrong with the name
        return self._sites[name]

    def mean(self, name: str) -> Array:
        """Posterior means of a site, (batch, *site shape)."""
        return outward(self._site(name)[0])

    def variance(self, name: str) -> Array:
        """Posterior variances of every element of a site, (batch, *site shape)."""
        return outward(self._site(name)[1])


class _Told(NamedTuple):
    """What a batch reads of the state of its runs."""

    free_energy: np.ndarray
    converged: np.ndarray
    sweep: np.ndarray


def _batch_of(each: list[Posterior], sites: dict[str, tuple], told: _Told) -> PosteriorBatch:
    return PosteriorBatch(each.__getitem__, lambda: sites, told, ())


@under_ours
def run_batch(model: Callable, options: Options, args: tuple, kwargs: dict,
              over: str | Sequence[str], key: Array) -> PosteriorBatch:
    """See `VMP.run_batch`.

    Args:
        model: the program; options: of every run; args, kwargs: what it is called with.
        over: names of arguments or sites, whose arrays have an axis of runs in front.
        key: of the start, one for all runs.

    Raises:
        SiteError: a name of `over` is no argument with arrays and no site with data.
        ShapeError: their lengths differ, or are zero. As `VMP.run`, with the number of the run.
    """
    try:
        over = (over,) if isinstance(over, str) else tuple(over)
    except TypeError:
        over = (over,)
    if not all(isinstance(n, str) for n in over):
        raise SiteError("a batch is over arguments or sites", found=f"over={over}",
                        expected="a name, or several", fix="run_batch(..., over='y')")
    args, kwargs = from_masked((args, kwargs))
    (model, args, kwargs), axes = _marked((model, args, kwargs), over)
    leaves, tree = jax.tree.flatten((model, args, kwargs))
    _check_lengths([x for x, a in zip(leaves, axes) if a == 0], over)
    one = tree.unflatten([x[0] if a == 0 else x for x, a in zip(leaves, axes)])
    compiled, call = compiled_for(one[0], options, one[1], one[2], checked=False)
    arrays = [_is_array(x) for x in leaves]
    dynamic = [own(x) for x, a in zip(leaves, arrays) if a]
    axes = tuple(x for x, a in zip(axes, arrays) if a)
    first, more, shape = _stages(compiled, axes)

    @under_ours
    def call_of(i: int) -> Any:
        return call._replace(dynamic=[x[i] if a == 0 else x for x, a in zip(dynamic, axes)])

    with ours():
        # All there is to do where one pass is exact, else no sweep yet.
        until = min(compiled.options.max_iters, CHUNK) if compiled.single else 0
        bound, state, history, plan, sites, told = first(dynamic, key, until)
        rows = [compiled.told.unpack(row) for row in np.asarray(told)]
        for i, (_, _, checks) in enumerate(rows):
            _in_run(i, lambda i=i, checks=checks: compiled.refuse(call_of(i), checks))
        if not compiled.single:
            state, history = swept(compiled, more, state, bound, history)
        told, past = jax.device_get((state.told, history))
        leaves, form = jax.tree.flatten(told)
        each = list(map(form.unflatten, zip(*leaves)))

    @under_ours
    def make(i: int) -> Posterior:
        own_state, own_bound, own_plan, own_sites = jax.tree.map(
            lambda x: x[i], (state, bound, plan, sites))
        mine = each[i]._replace(moments=own_state.moments)
        return Posterior(compiled, call_of(i), mine, own_bound, past[i], own_plan,
                         sites=own_sites)

    def shaped() -> dict[str, tuple]:
        if sites is not None:
            return sites[1]
        with ours():
            return shape(state.moments, bound, plan)[1]

    for i, mine in enumerate(each):
        _in_run(i, lambda i=i, mine=mine: after(compiled, call_of(i), mine, past[i],
                                                partial(make, i)))
    transformed = tuple(n for n, v in compiled.graph.variables.items()
                        if v.site.transform is not None)
    return PosteriorBatch(make, shaped, told, transformed)


def swept(compiled: Compiled, more: Callable, state: State, bound: Evidence, history: Array,
          tell: Callable[[int], object] = lambda sweeps: None) -> tuple[State, Array]:
    """Runs side by side, by `more` in chunks, until each has settled or gone wrong, or has done all
    its sweeps. Once one of them is slow, all start ahead.

    Args:
        compiled: the program that is run.
        more: (state, bound, history, until) -> (state, history), of all runs.
        state, history: of all runs, which are in front; history (runs, most).
        bound: the numbers of the runs.
        tell: called after every chunk with the number of sweeps.
    """
    until, most = 0, compiled.options.max_iters
    while until < most and not np.asarray(state.converged | (state.bad >= 0)).all():
        until = min(until + CHUNK, most)
        state, history = more(state, bound, history, until)
        if compiled.followed and state.ahead is None and np.asarray(state.pace.slow).any():
            state = jax.vmap(compiled.ahead)(state)
        tell(until)
    return state, history


def _in_run(i: int, check: Callable[[], None]) -> None:
    try:
        check()
    except JopaError as error:
        raise error.inside(f"run {i} of the batch") from None


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _marked(call: tuple, over: tuple[str, ...]) -> tuple[tuple, list[int | None]]:
    """The call with its batched distributions in the shape of one run, and for every leaf the axis
    that is the batch's: 0 or None.

    Raises:
        SiteError: a name of `over` is neither an argument with arrays nor a site with data or a
            belief of its own.
    """
    call = _with_single_shapes(call, over)
    model, args, _ = call
    own = list(inspect.signature(unwrapped(model)).parameters)[:len(args)]
    used, axes, known = set(), [], set()
    for path, leaf in tree_flatten_with_path(call)[0]:
        named = {k.key for k in path if isinstance(getattr(k, "key", None), str)}
        if getattr(path[0], "idx", None) == 1 and path[1].idx < len(own):
            named.add(own[path[1].idx])
        if _is_array(leaf):
            known |= named
        found = named & set(over) if _is_array(leaf) else set()
        used |= found
        axes.append(0 if found else None)
    if lost := [n for n in over if n not in used]:
        raise SiteError("unknown name in over=", site=lost[0], found=f"'{lost[0]}'",
                        expected=f"some of {names(sorted(known))}: arguments, or sites of "
                                 "jp.condition or jp.given, that hold arrays",
                        fix="name what has one more axis in front, a value a run")
    return call, axes


def _with_single_shapes(call: tuple, over: tuple[str, ...]) -> tuple:
    """Distributions under a name of `over` told that their first batch axis is the batch's: the
    shapes of a distribution are no leaves of it."""
    def single(fn: dist.Distribution) -> dist.Distribution:
        new = copy.copy(fn)
        new._batch_shape = tuple(fn.batch_shape)[1:]
        if hasattr(fn, "base_dist"):
            new.base_dist = single(fn.base_dist)
        return new

    def whole(fn: dist.Distribution) -> dist.Distribution:
        """With a value a run in every parameter: NumPyro gives shared ones a first axis of 1."""
        runs = fn.batch_shape[:1]
        return jax.tree.map(lambda x: np.broadcast_to(x, runs + np.shape(x)[1:])
                            if runs and np.shape(x)[:1] == (1,) else x, fn)

    is_dist = lambda x: isinstance(x, dist.Distribution)
    leaves, tree = jax.tree.flatten(call, is_leaf=is_dist)
    paths = [path for path, _ in tree_flatten_with_path(call, is_leaf=is_dist)[0]]
    batched = [is_dist(x) and any(getattr(k, "key", None) in over for k in path)
               for x, path in zip(leaves, paths)]
    return tree.unflatten([single(whole(x)) if b else x for x, b in zip(leaves, batched)])


def _check_lengths(arrays: list[Any], over: tuple[str, ...]) -> None:
    """Refuse arrays that do not hold a value for each of the same runs.

    Raises:
        ShapeError: their lengths differ, or are zero.
    """
    sizes = {np.shape(x)[0] if np.ndim(x) else None for x in arrays}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        raise ShapeError("the arrays of a batch differ in length",
                         found=f"{names(over)} with {sorted(map(str, sizes))} values",
                         expected="one value a run, along the first axis",
                         fix="stack one array a run: jnp.stack([first, second, ..])")


def _stages(compiled: Compiled, axes: tuple) -> tuple[Callable, Callable, Callable]:
    """The stages of a run, over a batch: compiled once for the same batched arguments."""
    return compiled.stage(("batch", axes), lambda: (
        jax.jit(jax.vmap(compiled._first, (list(axes), None, None)), compiler_options=often()),
        jax.jit(jax.vmap(compiled._more, (0, 0, 0, None)), compiler_options=often()),
        jax.jit(jax.vmap(partial(parts, compiled.engine)), compiler_options=once())))
