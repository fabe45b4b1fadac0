"""Proofs, site by site: which factor a site is, in every segment, and which latents are barren."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from jopa_ppl.errors import SiteError, StructureError, names
from jopa_ppl.graph import links as conjugacy
from jopa_ppl.graph.factor import RULES, Factor
from jopa_ppl.graph.scored import is_latent, latents_of, scored_factor
from jopa_ppl.program.carry import Reader
from jopa_ppl.program.continued import obstacles
from jopa_ppl.program.program import Program, Site
from jopa_ppl.program.refs import Ref
from jopa_ppl.program.segments import Segment
from jopa_ppl.proof.dependence import Dependence


def barren(program: Program, reader: Reader) -> tuple[str, ...]:
    """Latents from which no path leads to an observed site."""
    children: dict[str, set[str]] = {name: set() for name in program.sites}
    strays: list[str] = []       # outside of a scan, not proved to belong to its steps
    for site in program.sites.values():
        outputs = site.parameters
        for segment in reader.segments_of(site):
            for dependence in reader.dependence(outputs, segment):
                for ref in dependence.names:
                    if ref.is_scan:
                        strays.append(site.name)
                    if ref.is_site:
                        children[ref.site].add(site.name)
    for seed, ref in reader.seeds:
        children[seed] |= children[ref.site]
    seen = {s.name for s in program.sites.values() if s.observed}
    if not seen:
        raise SiteError("nothing is observed", found="a program without observed sites",
                        expected="at least one observed site",
                        fix="pass data to the model, or condition it: jp.condition(model, {...}). "
                            "Data that are all NaN carry the prior forward; draws of the prior are "
                            "those of numpyro.infer.Predictive(model, num_samples=100)")
    alive = set(seen)
    while True:
        more = {n for n, c in children.items() if n not in alive and c & alive}
        if not more:
            if lost := [n for n in strays if n in alive]:
                raise StructureError(
                    "it depends on what a scan returned", site=lost[0],
                    found="; ".join(obstacles(program)) or "the final carry or the stacked outputs "
                          "of a scan, in a way that is not step by step",
                    expected="a Gaussian whose first axis is time and whose every element sees its "
                             "own step alone, or an observed Gaussian of the last carry",
                    fix="move the statement into the body of the scan; where a scan begins with "
                        "what another one returned, write one over all steps, whose body asks "
                        "which, with t among its inputs: jnp.where(t < T, mean, other_mean); of "
                        "two that begin there, let that one carry both states")
            return tuple(n for n in program.sites if n not in alive)
        alive |= more


def factor_of(reader: Reader, site: Site, segment: Segment, alive: set[str],
            lost: set[tuple[str, str]], wanted: str | None) -> Factor:
    """The factor of a site: conjugate if it can be, with an approximate message if it may be.

    Args:
        alive: sites that something observed depends on. lost: (site, plate) that other sites mix.
        wanted: the message that was asked for, or None.

    Raises:
        StructureError: no way fits; of several that of the first, which says the most.
    """
    _check_value(reader, site, segment)
    likely = site.likelihood is not None and not site.partial
    planned = reader.program.planned            # a plan goes along a path, and so does its past
    rule = wanted or ("linearise" if reader.program.networks or planned else "quadrature")
    if wanted == "amortised" and not site.amortized:
        raise StructureError("it has no encoder", site=site.name, found="messages='amortised'",
                             expected="a jp.Amortized likelihood",
                             fix="choose 'linearise' or 'cubature', or wrap the likelihood")
    if site.rules.scored or (wanted in RULES and site.amortized):
        return scored_factor(reader, site, segment, alive, lost, rule, "")
    probabilities = site.rules.constant and not site.rules.noise
    if site.rules.counted or site.rules.by_density or probabilities:
        return _counted_factor(reader, site, segment, alive, lost, rule)
    if site.is_normal:
        conjugacy.check_sign(site, reader, segment)
    # A normal's mean is averaged for itself, its noise exact, but for Laplace's curvature of both;
    # what a plan costs is a square.
    curved = site.is_normal and not site.rules.certain
    others = [*[scored_factor] * likely, *[_curved_factor] * curved]
    ways = [_conjugate_factor, *(others[::-1] if rule != "linearise" or planned else others)]
    errors: list[StructureError] = []
    for way in ways:
        try:
            factor = way(reader, site, segment, alive, lost, rule, str(errors and errors[0].found))
            break
        except conjugacy.NoSlopeError:
            raise
        except StructureError as error:
            errors.append(error)
    else:
        # Of a family that is never conjugate, why its density serves as little says the most.
        raise (conjugacy.no_recursion(site, str(errors[0].found)) if site.rules.certain
               else errors[0 if site.rules.noise else -1])
    return replace(factor, message="amortised") if site.amortized else factor


def check_wanted(site: Site, factors: Sequence[Factor], wanted: str | None) -> None:
    """Refuse a rule for a site whose messages are exact wherever it stands."""
    likely = site.likelihood is not None and not site.partial
    if wanted in RULES and not likely and not any(f.bent for f in factors):
        raise StructureError("it is conjugate: its message is exact", site=site.name,
                             found=f"messages={{'{site.name}': '{wanted}'}}",
                             expected="a site that is not", fix="leave it out of messages=")


def _check_value(reader: Reader, site: Site, segment: Segment) -> None:
    """Refuse an observed value that is made of latents."""
    values = [site.outputs["value"]] if "value" in site.outputs else []
    made = latents_of(reader, values, segment)
    if made:
        raise StructureError(
            f"what it observes is made of {names(made)}", site=site.name,
            found="obs= with a latent in it", expected="data, or values of observed sites",
            fix=f"of a Gaussian, observe zeros with the difference as the mean: Normal(loc - "
                f"{min(made)}, scale) at 0 is Normal(loc, scale) at {min(made)}; or make it data "
                "with jp.condition")


def _counted_factor(reader: Reader, site: Site, segment: Segment, alive: set[str],
                    lost: set[tuple[str, str]], rule: str) -> Factor:
    """The factor of a site over values or counts of them, by probabilities of data or of Dirichlet
    latents (else scored), or of probabilities."""
    key = site.rules.constant or next(iter(site.rules.noise))
    (found,) = (reader.dependence([site.outputs[key]], segment) if key in site.outputs else (None,))
    latent = {r for r in found.names if is_latent(reader.program, r) and r.site in alive
              } if found else set()
    plain = Factor(site, segment, site.family, site.axes, (), (), (), frozenset(), False, False,
                   (), key)
    if site.rules.constant:
        conjugacy.check_constant(site, key, found, latent)
        return replace(plain, varying_in_time=_moves(reader, segment, found))
    families = {reader.program.sites[r.site].family for r in latent}
    reason = site.described if site.rules.by_density else ""
    scored = partial(scored_factor, reader, site, segment, alive, lost, rule, reason)
    if found is None or not families <= {*site.rules.made_of} or (
            site.rules.by_density and not families):
        return scored()
    try:
        own = conjugacy.check_noise(site, key, found, latent, reader.program)
    except StructureError:
        if site.rules.by_density:
            return scored()
        raise
    varies = site.rules.by_density and _moves(reader, segment, found)
    return replace(plain, noise=own, noise_varying=varies)


def _moves(reader: Reader, segment: Segment, found: Dependence) -> bool:
    """Whether data make a parameter differ from step to step."""
    return segment.scan is not None and not all(is_latent(reader.program, r) for r in found.names)


def _together(reader: Reader, products: tuple[tuple[Ref, ...], ...], latent: set[Ref]) -> set[Ref]:
    """The latents that multiply another step of what they are a step of."""
    seeds = dict(reader.seeds)
    series = lambda r: seeds.get(r.site, r).site
    return {r for p in products for r in p if r in latent
            and any(q != r and q in latent and series(q) == series(r) for q in p)}


def _curved_factor(reader: Reader, site: Site, segment: Segment, alive: set[str],
                   lost: set[tuple[str, str]], rule: str, reason: str) -> Factor:
    """A Gaussian whose mean is not affine, linearised at the present belief."""
    return _conjugate_factor(reader, site, segment, alive, lost, rule, reason, curved=True)


def _conjugate_factor(reader: Reader, site: Site, segment: Segment, alive: set[str],
                      lost: set[tuple[str, str]], rule: str, reason: str = "",
                      curved: bool = False) -> Factor:
    program = reader.program
    plates = site.axes
    conjugacy.check_family(site)
    noise_key = site.rules.noise_key(site.outputs)
    keys = (site.rules.first, noise_key)
    mean, noise = reader.dependence([site.outputs[k] for k in keys], segment)
    latent = {r for d in (mean, noise) for r in d.names
              if is_latent(program, r) and r.site in alive}
    normal = site.rules.elementwise and bool(site.rules.location)
    spread = tuple(sorted(r for r in noise.names if r in latent and normal
                          and program.sites[r.site].rules.location))
    if both := sorted({r.site for r in spread if r in mean.names}):
        raise StructureError(f"its mean and its scale are made of {names(both)}", site=site.name,
                             found="a latent in both", expected="latents of their own in each",
                             fix="give the scale a latent of its own, or run SVI or NUTS")
    latent -= {*spread}
    noise_names = conjugacy.check_noise(site, noise_key, noise, latent, program)
    lost |= {(r.site, p.name) for r in spread for p in program.sites[r.site].axes
             if p.name not in {q.name for q in plates}}
    lost |= {(r.site, p) for r, p in noise.lost if r in spread}
    weights = [site.outputs[k] for k in ("weight",) if k in site.outputs]
    for d in reader.dependence(weights, segment):
        if seen := sorted({r.site for r in d.names if is_latent(program, r)}):
            raise StructureError("a scale or mask depends on a latent", site=site.name,
                                 found=f"dependence on {names(seen)}",
                                 expected="weights made of data", fix="compute it from data")
    if site.rules.constant:
        conjugacy.check_constant(site, site.rules.constant, mean, latent)
        moves = [_moves(reader, segment, d) for d in (mean, noise)]
        return Factor(site, segment, site.family, plates, (), (), noise_names, frozenset(), *moves,
                      (), noise_key)
    bent = {r for r in latent & mean.not_affine.keys() if curved
            and program.sites[r.site].rules.location}
    first = segment.early
    products, knowns = conjugacy.check_mean(site, mean, latent, program, first, bent)
    if together := _together(reader, products, latent) - bent:      # of one chain, at two steps
        if not curved:
            raise StructureError("two steps of one chain multiply each other", site=site.name,
                                 found=f"a product of {' and '.join(map(str, sorted(together)))}",
                                 expected="a mean that is affine in a chain, given the rest",
                                 fix="draw it from a Normal, whose mean may be any function")
        bent |= together
        products, knowns = conjugacy.check_mean(site, mean, latent, program, first, bent)
    conjugacy.check_slope(site, [site.outputs[k] for k in keys], bent | {*spread},
                          {**noise.nonlinear, **mean.nonlinear}, program)
    varying, refs = set(), sorted({r for p in products for r in p if r in latent})
    if bent:
        varying |= {p.name for p in plates}
    for plate in plates:
        axis = mean.axes[plate.axis]
        own = axis.plate == plate.name
        if axis.varies or (axis.plate is not None and not own):
            varying.add(plate.name)
        if axis.plate is not None and not own:
            lost |= {(r.site, axis.plate) for r in refs}
    for i, axis in enumerate(mean.axes):
        if axis.plate is not None and i not in {p.axis for p in plates}:
            lost |= {(r.site, axis.plate) for r in refs}
    for ref in refs:
        for plate in program.sites[ref.site].axes:
            if plate.name not in {p.name for p in plates}:
                lost.add((ref.site, plate.name))
    lost |= {(r.site, p) for r, p in mean.lost}
    data = {r for r in mean.names if not is_latent(program, r)} - knowns
    # (Of one step there is nothing to differ.)
    varying_in_time = segment.scan is not None and not segment.early and bool(data or bent)
    if not all(r.is_input for r in data):       # observed sites: each element has its own
        varying |= {p.name for p in plates}
    varying_noise = not all(is_latent(program, r) for r in noise.names)
    reads = any(r.is_site and not is_latent(program, r)
                for d in (mean, noise) for r in d.names)
    own = ()
    if not site.observed or site.partial:
        own = (site.ref(),)
        products += (own,)
        varying |= {p.name for p in plates if (site.name, p.name) in reader.dense}
    return Factor(site, segment, site.family, plates, (*own, *refs), tuple(sorted(knowns)),
                  noise_names, frozenset(varying), varying_in_time, varying_noise, products,
                  noise_key, rule if spread or bent else "exact",
                  reason if bent else _bending(noise, spread), reads, spread,
                  curved=tuple(sorted(bent)))


def _bending(noise: Dependence, spread: tuple[Ref, ...]) -> str:
    """What of a normal is not conjugate in latents of its precision."""
    if not spread:
        return ""
    blame = next((noise.nonlinear[r] for r in spread if r in noise.nonlinear), None)
    return f"its scale, made of {names(sorted({r.site for r in spread}))}" + (
        f" (operation '{blame.operation}' at {blame.where})" if blame else "")
