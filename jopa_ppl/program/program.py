"""A traced program, as data: its sites, scans, and one jaxpr from latents to every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Literal, Var, jaxpr_as_fun

from jopa_ppl.program.families import OfFamily
from jopa_ppl.program.likelihood import Likelihood, Transformation
from jopa_ppl.program.refs import Ref


@dataclass(frozen=True)
class Plate:
    """A batch axis (counted from the left of the site's batch shape) that is a numpyro.plate."""

    name: str
    axis: int
    size: int


class Window(NamedTuple):
    """Some of the steps of a scan: the first, how many, and the number of all."""

    start: int
    length: int
    of: int

    @property
    def steps(self) -> slice:
        return slice(self.start, self.start + self.length)


def status_of(observed: bool, partial: bool) -> str:
    """What is known of a site."""
    return "part" if partial else "data" if observed else "latent"


@dataclass(frozen=True)
class Site(OfFamily):
    """One sample statement.

    name, family: its own, and a row of `families.FAMILIES`. status: "latent", "data" or "part"
    (data where these are not NaN). scan: the index of the scan that draws it, or None. batch_shape,
    event_shape: of its distribution, without time; plates: those of them it stands in. outputs: by
    parameter, the output of the program's jaxpr that has it.
    """

    name: str
    family: str
    status: str
    scan: int | None
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    plates: tuple[Plate, ...]
    outputs: dict[str, int]
    held: bool = False         # its belief is used but not moved (given(..., update=False))
    updated: bool = False      # its belief is the prior of new data (given(..., update=True))
    amortized: bool = False    # its message is its encoder's
    role: str = "latent"       # "carry": a leaf that follows from the author's own sites
    described: str = ""        # the name of its distribution
    likelihood: Likelihood | None = None    # of sites that are scored, as the program scores them
    transform: Transformation | None = None     # of a latent that is not a Gaussian: x = T(u)
    shown: tuple[int, ...] | None = None        # the event shape of T(u), where it is another
    values: tuple[int, ...] = ()       # of a discrete latent, what it may be
    noise_of: str = ""         # of noise that was drawn apart from its site, that site
    outside: str = ""          # written after its scan: "steps", "event" (one event), "last" (step)
    window: Window | None = None       # of scans that were joined, the steps that it stands in

    @property
    def observed(self) -> bool:
        """Whether it is data, as a whole or in part."""
        return self.status in ("data", "part")

    @property
    def partial(self) -> bool:
        """Whether it is data only where these are not NaN."""
        return self.status == "part"

    @property
    def is_normal(self) -> bool:
        """Whether it is a Gaussian whose mean may be any function."""
        return bool(self.rules.noise and self.rules.location) and not self.amortized

    @property
    def parameters(self) -> tuple[int, ...]:
        """Outputs that its density is made of."""
        plain = self.rules.noise and not self.rules.counted
        scored = not plain and self.likelihood is not None
        support = () if self.transform is None else self.transform.leaves
        return (*self.outputs.values(), *(self.likelihood.leaves if scored else ()), *support)

    @property
    def everything(self) -> tuple[int, ...]:
        """All outputs that are about it."""
        likely = () if self.likelihood is None else self.likelihood.outputs
        support = () if self.transform is None else self.transform.leaves
        return (*self.outputs.values(), *likely, *support)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch_shape + self.event_shape

    @property
    def shown_event(self) -> tuple[int, ...]:
        """The event shape of its value as the program has it."""
        return self.event_shape if self.shown is None else self.shown

    def ref(self, back: int = 0) -> Ref:
        """Its value as a step reads it, `back` steps ago; outside of scans there is but one."""
        return Ref(self.name, None if self.scan is None else back)

    @property
    def is_series(self) -> bool:
        """Whether it has a value a step, time in front."""
        return self.scan is not None and self.outside != "last"

    def in_window(self, series: Array) -> Array:
        """Of a series of all steps of its scan, those that it stands in."""
        return series if self.window is None else series[self.window.steps]

    def around(self, series: Array) -> Array:
        """The reverse: 0 at the other steps."""
        if self.window is None:
            return series
        start, length, whole = self.window
        return jnp.pad(series, [(start, whole - start - length), *[(0, 0)] * (series.ndim - 1)])

    @property
    def first(self) -> int:
        """The first step of its scan that it stands in."""
        return 0 if self.window is None else self.window.start

    @property
    def weighted(self) -> bool:
        """Whether its steps or elements may have weights of their own."""
        return "weight" in self.outputs or self.window is not None

    def nearest(self, step: Array | int) -> Array | int:
        """The step nearest to a step of its scan in which it stands: what data make of it at the
        others weighs nothing, but has to be numbers that can be."""
        if self.window is None:
            return step
        start, length, _ = self.window
        return jnp.clip(step, start, start + length - 1)

    @property
    def axes(self) -> tuple[Plate, ...]:
        """The batch axes that message passing runs over: plates, and for matrix-valued families
        every other batch axis (elements of a Normal outside plates are one diagonal event)."""
        if not self.rules.by_matrix:
            return self.plates
        named = {p.axis: p for p in self.plates}
        return tuple(named.get(i, Plate(f"{self.name}.{i}", i, n))
                     for i, n in enumerate(self.batch_shape) if i in named or n > 1)


@dataclass(frozen=True)
class Scan:
    """A scan: its length and where the jaxpr keeps what enters and leaves a step."""

    index: int
    length: int
    init: tuple[int, ...]            # outputs: the first carry
    carry: tuple[int, ...]           # outputs: the carry after one step
    xs: dict[str, int]               # input key of a slice -> output that holds the whole series
    sites: tuple[str, ...]
    ys: tuple[int, ...] = ()         # outputs: what a step adds to the stacked outputs
    leaves: tuple[str, ...] = ()     # what its author calls the leaves of the carry


@dataclass(frozen=True)
class Program:
    """A program that was run once: its sites, its scans, and one jaxpr from placeholders to every
    parameter. It holds no numbers; a run gives them (`engine.evidence`).

    Attributes:
        name: of the function. sites: in the order in which they are drawn.
        scans: in their order; `Site.scan` and keys count them.
        jaxpr: from `inputs` to the outputs that `Site.outputs`, `Scan.init`, .. point at.
        inputs: a key for each input, "kind/name": "data/i" an array among the arguments; "latent/x"
            and "known/x" the value of a site (of a site of a scan, at one step); "xs/s/i" the slice
            of an input of scan s ("xs/s/i:x" that of a site's series, "xs/s/#step" the step),
            "carry/s/i" a leaf of its carry; "after/s/i" and "ys/s/i" what it returns, leaves of the
            last carry and of the stacked outputs.
        shapes: of the inputs, by key. networks: whether it declares some with `jp.module`.
        borders: latents outside scans that are a part of a state (`recursions.with_borders`).
        planned: whether decisions are taken in it.

    What must hold: every parameter of a site is an output, of the site's full shape (matrices:
    batch + (n, n)); a step's outputs depend on that step's inputs alone, its past comes through
    "carry/..". `program.carry.Reader` composes steps, so that outputs depend on `Ref`s.
    """

    name: str
    sites: dict[str, Site]
    scans: tuple[Scan, ...]
    jaxpr: ClosedJaxpr
    inputs: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    networks: bool = False
    borders: tuple[str, ...] = ()
    planned: bool = False
    _picked: dict = field(default_factory=dict)

    def length_of(self, site: Site) -> int:
        """The number of steps that a site of a scan stands in."""
        return self.scans[site.scan].length if site.window is None else site.window.length

    def evaluate(self, outputs: Sequence[int], values: dict[str, Array]) -> list[Array]:
        """The given outputs of the jaxpr, as a function of the inputs they need, `values` by key;
        latents, carries and inputs of steps without a value are 0.

        Raises:
            KeyError: data that they need are missing.
        """
        closed, used = self.pruned(outputs)
        args = []
        for i, (k, aval) in enumerate(zip(self.inputs, closed.in_avals)):
            value = values.get(k)
            if value is None:
                if i in used and k.startswith(("data/", "known/")):
                    raise KeyError(k)
                value = jnp.zeros(aval.shape, aval.dtype)
            args.append(jnp.asarray(value, aval.dtype)
                        if jnp.issubdtype(aval.dtype, jnp.floating) else value)
        return [jnp.asarray(x) for x in jaxpr_as_fun(closed)(*args)]

    def needs(self, outputs: Sequence[int]) -> set[str]:
        """Keys of the inputs that the given outputs depend on."""
        used = self.pruned(outputs)[1]
        return {k for i, k in enumerate(self.inputs) if i in used}

    def is_real(self, key: str) -> bool:
        """Whether an input of the jaxpr holds real numbers."""
        return jnp.issubdtype(self.jaxpr.in_avals[self.inputs.index(key)].dtype, jnp.floating)

    def pruned(self, outputs: Sequence[int]) -> tuple[ClosedJaxpr, set[int]]:
        """`prune` of the program's jaxpr, once for the same outputs."""
        key = tuple(outputs)
        if key not in self._picked:
            self._picked[key] = prune(self.jaxpr, key)
        return self._picked[key]


def prune(closed: ClosedJaxpr, outputs: Sequence[int]) -> tuple[ClosedJaxpr, set[int]]:
    """Only the equations that the given outputs need, and the positions of the inputs they use."""
    jaxpr = closed.jaxpr
    outvars = [jaxpr.outvars[i] for i in outputs]
    needed = {v for v in outvars if isinstance(v, Var)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if any(v in needed for v in eqn.outvars):
            kept.append(eqn)
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    used = {i for i, v in enumerate(jaxpr.invars) if v in needed}
    small = jaxpr.replace(eqns=kept[::-1], outvars=outvars,
                          debug_info=jaxpr.debug_info.with_unknown_names()
                          if hasattr(jaxpr.debug_info, "with_unknown_names")
                          else jaxpr.debug_info)
    return ClosedJaxpr(small, closed.consts), used
