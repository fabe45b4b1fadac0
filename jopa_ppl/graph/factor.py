"""Factors of a program, and the graph of them: what is proved (`proving`), before inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from jax import Array

from jopa_ppl.beliefs import Belief, Variable
from jopa_ppl.program.carry import Reader
from jopa_ppl.program.program import Plate, Program, Site
from jopa_ppl.program.refs import Ref
from jopa_ppl.program.segments import Segment

RULES = ("linearise", "cubature", "quadrature")     # messages of factors that are not conjugate


@dataclass(frozen=True)
class Factor:
    """The log density of one site in one segment, and what is proved of it.

    Of a Gaussian: N(r; 0, P^-1) of a residual r = z - mean that is affine in each of `latents`
    apart and in all of `knowns` together, with a precision P that is a product of data and of the
    latents `noise`, each to the power 1. Of others see `engine.densities`.

    Attributes:
        site, segment: whose, and of which steps.
        family: of the row in `engine.densities.DENSITIES` that answers for it.
        plates: its batch axes, by position; that of time, of a site of a scan, stands before them.
        latents: the Gaussian latents in the residual, its own value first where that is latent.
        knowns: observed sites and inputs of the scan that it is affine in.
        noise: names of latents in the precision (of gamma: in the rate).
        spread: Gaussian latents in the precision of a normal, which enter in any way.
        curved: Gaussian latents that its mean is not affine in.
        scored: whether its message is made of its log density as the program scores it, in all of
            `latents` at once.
        fixed: discrete latents, and which of its values each has in this copy of the factor.
        copies: the joint values of those that it stands for, each with a copy of its own (`copy`);
            all are alike but for the values, and evaluated side by side (`Energy.each`).
        part: what tells a `noise_part` from the factor.
        varying, varying_in_time: the plates along which its coefficients differ, and whether they
            do from step to step; elsewhere they are made once.
        noise_varying: whether a precision that is read from data differs from step to step.
        products: the products of latents (and observed sites) that the residual is a sum of.
        noise_key: the parameter that gives the noise.
        message, reason: exact, amortised or the one of RULES by which expectations are taken where
            it is not conjugate, and what made it so (operation, line).
        reads: whether it is made of values of other observed sites, whose gaps are its own too.
    """

    site: Site
    segment: Segment
    family: str
    plates: tuple[Plate, ...]
    latents: tuple[Ref, ...]
    knowns: tuple[Ref, ...]
    noise: tuple[str, ...]
    varying: frozenset[str]
    varying_in_time: bool
    noise_varying: bool
    products: tuple[tuple[Ref, ...], ...]
    noise_key: str
    message: str = "exact"
    reason: str = ""
    reads: bool = False
    spread: tuple[Ref, ...] = ()
    curved: tuple[Ref, ...] = ()
    scored: bool = False
    fixed: tuple[tuple[Ref, int | Array], ...] = ()
    copies: tuple[tuple[int, ...], ...] = ()
    part: str = ""

    @property
    def name(self) -> str:
        return self.site.name + self.segment.label + self.part

    @property
    def dims(self) -> int:
        return prod(self.site.shape) // prod(p.size for p in self.plates)

    @property
    def observed(self) -> tuple[Ref, ...]:
        """Those of its `knowns` that are observed sites."""
        return tuple(r for r in self.knowns if not r.is_input)

    @property
    def in_time(self) -> bool:
        """Whether it has an axis of time, the steps of its segment."""
        return self.segment.scan is not None

    @property
    def stands(self) -> bool:
        """Whether its site stands in any of its steps."""
        first = self.segment.start
        return self.site.window is None or (
            first < self.site.window.steps.stop and self.site.first < first + self.segment.length)

    @property
    def bent(self) -> tuple[Ref, ...]:
        """The latents that it is not conjugate in."""
        return self.latents if self.scored else (*self.spread, *self.curved)

    @property
    def plain(self) -> bool:
        """Whether it is of a latent Gaussian whose noise is data and could be drawn apart."""
        site = self.site
        return not (site.partial or self.noise or self.bent or self.fixed or site.rules.certain
                    or {"weight", "precision_matrix"} & {*site.outputs})

    def bends(self, block: Belief) -> bool:
        """Whether its message to a block depends on the present belief about it."""
        return any(r.site in block.members for r in self.bent)

    @property
    def touched(self) -> tuple[Ref, ...]:
        """All latents that it depends on, but for those of its noise."""
        return (*self.latents, *self.spread, *(r for r, _ in self.fixed))

    @property
    def noise_part(self) -> Factor:
        """The factor as beliefs about the latents of its precision see it."""
        return replace(self, latents=self.spread, spread=(), part=f"{self.part} noise")

    def instances_of(self, block: Belief) -> list[Ref]:
        """The latents of a block that it touches: those outside the scan, then the latest last;
        first those that elements of its plates share, whose draws are then the same for all."""
        members, latents = block.members, block.latents
        mine = [r for r in self.latents if r.site in members]
        return sorted(mine, key=lambda r: (r.back is not None, -(r.back or 0), len(
            latents[r.site].plates), members.index(r.site)))

    def copy(self, chosen: Sequence[int] | Array) -> Factor:
        """That of chosen values, which JAX may trace."""
        return replace(self, copies=(), fixed=tuple(
            (r, chosen[i]) for i, (r, _) in enumerate(self.fixed)))

    @property
    def value(self) -> Ref | None:
        """The site's own value where that is latent."""
        return None if self.site.observed and not self.site.partial else self.site.ref()


@dataclass(frozen=True)
class Graph:
    """The factor graph of a program: its variables, factors and blocks.

    `predicted` are latents without observed descendants: removed before inference and predicted
    from the posterior afterwards.
    """

    program: Program
    reader: Reader
    variables: dict[str, Variable]
    factors: tuple[Factor, ...]
    blocks: tuple[Belief, ...]
    predicted: tuple[str, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)

    def block_of(self, name: str) -> Belief:
        """The block that holds a latent site."""
        return next(b for b in self.blocks if name in b.members)

    def stands_alone(self, name: str) -> bool:
        """Whether the prior of a Gaussian latent involves no other block: such a prior may stay,
        its barren elements keep it, move nothing and add nothing to F. One that is no Gaussian, or
        follows a discrete latent, stays in any case."""
        block = self.block_of(name)
        return block.gaussian and all(
            f.scored or f.fixed or (not f.noise and {r.site for r in f.touched} <= {*block.members})
            for f in self.factors if f.site.name == name)
