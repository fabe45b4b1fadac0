"""Factors whose message is made of their log density at the present belief."""

from __future__ import annotations

from collections.abc import Sequence

from jopa_ppl.errors import StructureError, names
from jopa_ppl.graph.discrete import is_discrete
from jopa_ppl.graph.factor import Factor
from jopa_ppl.graph.links import check_slope
from jopa_ppl.program.carry import Reader
from jopa_ppl.program.program import Program, Site
from jopa_ppl.program.refs import Ref
from jopa_ppl.program.segments import Segment


def scored_factor(reader: Reader, site: Site, segment: Segment, alive: set[str],
                  lost: set[tuple[str, str]], rule: str, reason: str) -> Factor:
    """A factor whose message is made of its log density at the present belief."""
    program, found = reader.program, reader.dependence(site.likelihood.leaves, segment)
    latents = sorted({r for d in found for r in d.names
                      if is_latent(program, r) and r.site in alive})
    _check_bounds(reader, site, segment)
    if site.rules.scored:
        _check_transform(reader, site, segment)
        latents = [site.ref(), *latents]
        reason = f"its family, {site.described}"
    for ref in latents:
        if not program.sites[ref.site].rules.location:
            raise StructureError(
                f"its likelihood depends on '{ref.site}', which is not Gaussian",
                site=site.name, found=program.sites[ref.site].family,
                expected="Gaussian latents in a likelihood that is not conjugate",
                fix="fix it, or learn it as a weight of a network (jp.module)")
    jumps = {r: d.nonlinear[r] for d in found for r in d.nonlinear if r in latents}
    check_slope(site, site.likelihood.leaves, {*latents} - {site.ref()}, jumps, program)
    own = {p.name for p in site.plates}
    lost |= {(r.site, p.name) for r in latents for p in program.sites[r.site].axes
             if p.name not in own}
    mixed = sorted({(r.site, p) for d in found for r, p in d.lost if r in latents and p in own})
    if mixed:
        name, plate = mixed[0]
        raise StructureError(
            f"its likelihood mixes elements of plate '{plate}'", site=site.name,
            found=f"elements that depend on several elements of '{name}'",
            expected="every element of the plate apart", fix="batch the network over the plate")
    return Factor(site, segment, "likelihood", site.plates, tuple(latents), (), (), frozenset(),
                  False, False, tuple((r,) for r in latents), "", rule, reason, scored=True)


def _check_bounds(reader: Reader, site: Site, segment: Segment) -> None:
    """Refuse data whose support is made of latents: the density ends where they are."""
    bounds = [v for k, v in site.outputs.items() if k.startswith("bound ")]
    made = latents_of(reader, bounds, segment)
    if made:
        raise StructureError(
            f"its support depends on {names(made)}", site=site.name,
            found=f"{site.described} with a bound that is latent", expected="bounds made of data",
            fix=f"where no data lie beyond it, whatever {made[0]} is (a bound above them all, plus "
                "what is latent), write the density itself: numpyro.factor"
                f"('{site.name}', log_density)")


def _check_transform(reader: Reader, site: Site, segment: Segment) -> None:
    """Refuse a latent whose support is made of latents, or that is drawn at every step."""
    made = latents_of(reader, site.transform.leaves, segment)
    if made:
        raise StructureError(f"its support depends on {names(made)}", site=site.name,
                             found=f"{site.described} with a bound that is latent",
                             expected="bounds made of data",
                             fix=f"draw it from a fixed interval and scale it: {made[0]} * "
                                 f"jp.latent('{site.name}', dist.Uniform(0, 1))")
    if site.scan is not None:
        raise StructureError(f"{site.described} inside a scan has no message", site=site.name,
                             found=f"{site.described} drawn at every step",
                             expected="Normal or MultivariateNormal in scans",
                             fix="let a Normal follow the steps, and what it stands for be a "
                                 "function of it: jnp.exp(x) of a log")


def latents_of(reader: Reader, outputs: Sequence[int], segment: Segment) -> list[str]:
    """The latents that outputs are made of, by name."""
    return sorted({r.site for d in reader.dependence(outputs, segment) for r in d.names
                   if is_latent(reader.program, r)})


def is_latent(program: Program, ref: Ref) -> bool:
    """Whether it is a latent that is not fixed by copies (`graph.discrete`), in part or whole."""
    site = program.sites[ref.site] if ref.is_site else None
    return (site is not None and (not site.observed or site.partial)
            and not is_discrete(program, ref))
