"""The contract of beliefs: what a block of latents answers, whatever the form of its belief."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from jopa_ppl.beliefs.layout import join, split
from jopa_ppl.linalg.factors import Moments
from jopa_ppl.program.program import Plate, Site
from jopa_ppl.program.refs import Ref
from jopa_ppl.program.segments import Segment


def block_name(members: Iterable[str]) -> str:
    """Its members by commas, those that hold one in quotes: no other members have it."""
    return ",".join(json.dumps(n) if re.search('[,"]', n) else n for n in members)


class Clamp(NamedTuple):
    """Elements of a block, (*batch, n) with time in front: inferred where `free` is 1; where it is
    0 the mean is `value`."""

    free: Array
    value: Array


@dataclass(frozen=True)
class Variable:
    """A latent array: `dims` numbers for every element of the plates it is local to."""

    name: str
    family: str                       # of the belief about it: `Family.belief`
    site: Site
    local: tuple[Plate, ...]

    @property
    def dims(self) -> int:
        return prod(self.site.shape) // prod(p.size for p in self.local)

    @property
    def plates(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.local)

    @property
    def is_series(self) -> bool:
        """Whether it has an axis of time in front."""
        return self.site.scan is not None

    def vectors(self, value: Array) -> Array:
        """Values of the site (.., *site shape) as vectors (.., *local plates, dims)."""
        return split(self.site.around(value), self.site, self.local)

    def values(self, vectors: Array) -> Array:
        """The reverse, behind the axis of time, where there is one: of the steps that it is in."""
        found = join(vectors, self.site, self.local, int(self.is_series))
        return self.site.in_window(found)


class Factor(Protocol):
    """What a belief reads of a factor (`jopa_ppl.graph.factor.Factor` is one).

    in_time: whether it has an axis of time; instances_of: the latents of a block that it touches.
    """

    site: Site
    segment: Segment
    plates: tuple[Plate, ...]

    @property
    def name(self) -> str: ...

    @property
    def in_time(self) -> bool: ...

    def instances_of(self, block: Belief) -> list[Ref]: ...


class Belief:
    """One joint belief about some latents. The layout lives in the object, the numbers in q.

    Axes of numbers: those of the block's plates, in order, in front; of a chain, time before them.

    Attributes:
        name: its members, by commas. latents: {site: Variable}, in their order.
        plates: names of the plates it repeats over; batch: their sizes.
        held: whether it is used and never moved.
        scan: the index of the scan whose steps a Gaussian chain spans, else None (a discrete chain
            spans those of its scan `over`).
        order, head: of a chain, how many steps it looks back, and the latents before the first.
        factors: by name, the factors whose sparsity its moments have (of a tree).

    Class attributes:
        kind: what files call it. family: that of its latents. label: what tables call it.
        note: what `jp.explain` says of it. rank: its place in a sweep.
        gaussian: whether its statistics are a mean and centred second moments.
        structured: whether it is sparse, and so no array of all pairs of members is formed.
        checked: whether factors have coefficients in a form of its own (`linalg.coefficients`),
            and `fits` has to be asked whether the numbers of a run have it.
        follows: whether it is completed by a message of the program (`following`).
        extrapolates: whether it has `coordinates`, so that sweeps can start ahead of it.
        parts: what a marginal of a site is told by, and files hold of it.
        layout_form: the form of its `layout`, as `posterior.storage.expect` has them.

    q is a pytree; `zero()` has its shapes. A mask tells what is inferred: of Gaussians a `Clamp` (a
    dict of them by member; of chains with members that follow, with how), of discrete latents 1
    where they are inferred, (*batch) or a dict by member; None where all of it always is.
    Statistics are what `stats` gives, a pytree; a message has their structure and shapes.

    Some answer more, where a factor asks it of them alone: discrete ones `share`, the probability
    of the values that a copy of a factor has, and `following`; precisions `harmonic` and `at_log`,
    E[1 / x]^-1 and the statistics at a log; chains `seeds`, the latents that stand for an earlier
    value of a site, {latent: which}; those that extrapolate `coordinates(q)`, numbers without
    bounds that tell where q is, (n,), and spreads to measure moves in, and `at_coordinates(q, at)`,
    q at another place; those that are checked `own_coefficients` and `own_slopes`
    (`MatrixBelief`).
    """

    kind: ClassVar[str]
    family: ClassVar[str]
    label: ClassVar[str]
    rank: ClassVar[int]
    parts: ClassVar[tuple[str, ...]]
    layout_form: ClassVar[dict[Any, Any]] = {}
    note: ClassVar[str] = ""
    gaussian: ClassVar[bool] = False
    structured: ClassVar[bool] = False
    checked: ClassVar[bool] = False
    follows: ClassVar[bool] = False
    extrapolates: ClassVar[bool] = False

    scan: int | None = None
    order: int = 1
    head: tuple[str, ...] = ()

    def __init__(self, latents: Mapping[str, Variable], *, sizes: Mapping[str, int],
                 name: str | None = None, plates: tuple[str, ...] = (), held: bool = False) -> None:
        self.latents, self.sizes = dict(latents), dict(sizes)
        self.name, self.plates, self.held = name or block_name(latents), plates, held
        self.batch = tuple(sizes[p] for p in plates)
        self.factors: dict[str, Factor] = {}

    @classmethod
    def takes(cls, latents: Mapping[str, Variable]) -> bool:
        """Whether it can be about these latents."""
        return all(v.family == cls.family for v in latents.values())

    @classmethod
    def read(cls, latents: Mapping[str, Variable], factors: Iterable[Factor],
             about: Mapping[str, Any]) -> Self:
        """The belief of a file, made with what it tells of it."""
        return cls(latents, **about)

    @property
    def layout(self) -> dict[str, Any]:
        """What `read` needs to make it again beside what all beliefs have, as JSON holds it."""
        return {}

    @property
    def members(self) -> tuple[str, ...]:
        """Its latents by name."""
        return tuple(self.latents)

    @property
    def variables(self) -> tuple[str, ...]:
        """The members but for the head."""
        return tuple(n for n in self.latents if n not in self.head)

    @property
    def can_follow(self) -> tuple[str, ...]:
        """Members that could follow others with certainty (`tied`): the steps of a chain."""
        return ()

    def fits(self, arrays: Mapping[str, Any]) -> Array | bool:
        """Whether the numbers of its factors, {name: `engine.evidence.FactorArrays`}, have the form
        that it was chosen for."""
        return True

    # -- what a sweep asks -----------------------------------------------------------------------

    def zero(self) -> Any:
        """An empty q."""
        raise NotImplementedError

    def mask(self, one: Callable[[str], Clamp]) -> Any:
        """The mask, from that of every member as vectors (*plates, dims), time in front."""
        return None

    def tied(self, mask: Any, rows: Mapping[str, Array], head_dims: int) -> Any:
        """The mask with how members follow that are certain given the rest (of a chain)."""
        return mask

    def stats(self, q: Any, mask: Any) -> Any:
        """Expected statistics, which the energy U is differentiated in; data in their place."""
        raise NotImplementedError

    def at_mean(self, stats: Any) -> Any:
        """Statistics without spread, of what has a mean and a spread."""
        return stats

    def averaged(self, stats: Any, q: Any) -> Any:
        """Statistics that a message of the program goes by (`following`): of probabilities, at
        their mean."""
        return stats

    def view(self, stats: Any, factor: Factor) -> Moments:
        """Moments of the instances that a factor touches, joined, on the factor's axes: mean
        (*axes, n), cov (*axes, n, n); of matrices `linalg.matrix.MatrixMoments`."""
        raise NotImplementedError

    def update(self, q: Any, message: Any, mask: Any) -> Any:
        """The q whose message is dU / dstats, the only rule of update there is."""
        raise NotImplementedError

    def message(self, q: Any, mask: Any) -> Any:
        """What `update` makes q of: its inverse."""
        raise NotImplementedError

    def entropy(self, q: Any, mask: Any) -> Array | float:
        """In nats; 0 for precisions, whose divergence from their prior F holds as a whole."""
        return 0.0

    def once_solved(self, stats: Any, mask: Any) -> tuple[Any, Array | float]:
        """Statistics in place of those of a q that has just been updated, and what the entropy has
        more then, in nats: what U and the entropy hold in common is left out of both."""
        return stats, 0.0

    def means(self, q: Any) -> Any:
        """Of the elements, (*batch, n) or a dict of such; none where q is no Gaussian."""
        return ()

    def precisions(self, message: Any, mask: Any) -> Any:
        """Of these elements, in their shape: the diagonal of the precision that a message gives."""
        return ()

    def watched(self, q: Any, message: Any, mask: Any) -> tuple[Any, Any]:
        """`update`, and the precisions that tell how many digits rounding leaves it: those of
        `precisions`, or larger ones that were met on the way."""
        return self.update(q, message, mask), self.precisions(message, mask)

    def variances(self, q: Any) -> Any:
        """Of these elements, in their shape."""
        return ()

    def moved(self, old: Any, new: Any) -> Array:
        """How far the means went, root mean square, in standard deviations."""
        raise NotImplementedError

    @property
    def turns(self) -> dict[str, set[str]]:
        """Members that `turned` can multiply, and all that stands for them at some step; none where
        elements are data in part."""
        return {}

    def turned(self, q: Any, by: Mapping[str, Array], mask: Any) -> Any:
        """q under x -> R x for some of `turns`, of every step and every element of the plates."""
        raise NotImplementedError

    def break_symmetry(self, q: Any, key: Array, size: Array | float) -> Any:
        """q with its means off by `size` of its spread, and narrow, where latents that start at the
        prior may stay there (products of two at zero); else q itself."""
        return q

    def scattered(self, q: Any, key: Array, size: Array | float) -> Any:
        """q elsewhere, `size` of its spread away, for another start to begin with."""
        return self.break_symmetry(q, key, size)

    def at_rest(self, q: Any) -> Any:
        """q with the means of a chain's steps where those before the first one are."""
        return q

    # -- what a posterior asks -------------------------------------------------------------------

    def completed(self, q: Any, mask: Any) -> Any:
        """q with data in their place, without spread."""
        return q

    def draw(self, q: Any, key: Array, mask: Any) -> tuple[Any, dict[str, Array]]:
        """A joint draw from a completed q: as a q without spread, and as values by site."""
        raise NotImplementedError

    def most_probable(self, q: Any) -> dict[str, Array]:
        """The joint values of a completed q that are most probable, by site, of what takes one of a
        few values."""
        return {}

    def log_prob(self, q: Any, mask: Any, values: Mapping[str, Array]) -> Array:
        """log q of values by site (site shape), over what is inferred; in nats, a scalar."""
        raise NotImplementedError

    def marginal(self, q: Any, steps: tuple[Array, Array] | None = None
                 ) -> dict[str, dict[str, Array]]:
        """By site, its `parts`. `steps`: mean and covariance of a chain's steps, in place of its
        own."""
        raise NotImplementedError

    def shaped(self, name: str, parts: Mapping[str, Array]
               ) -> tuple[Array, Array, dict[str, Array]]:
        """Mean and variance in the site's shape, and what `distribution` is made of."""
        raise NotImplementedError

    def distribution(self, name: str, parts: Mapping[str, Array], certain: bool
                     ) -> dist.Distribution:
        """A site's belief in NumPyro; `certain`: some of its elements have no variance."""
        raise NotImplementedError

    def jointly(self, chosen: tuple[str, ...]) -> tuple[str, ...]:
        """Which of the chosen members `joint` tells of."""
        return ()

    def joint(self, q: Any, names: tuple[str, ...]) -> tuple[Array, Array]:
        """Mean (*plates, n) and covariance (*plates, n, n) of some members, joined."""
        raise NotImplementedError

    def temper(self, q: Any, power: float, mask: Any) -> Any:
        """The belief to a power, normalised: the same mode, wider below 1; data stay."""
        raise NotImplementedError

    def take(self, q: Any, plate: str, index: Array) -> Any:
        """The belief about some elements of a plate."""
        axis = self.plates.index(plate)
        return jax.tree.map(lambda a: jnp.take(a, index, axis), q)
