"""Factors of a program, and the graph of them: what is proved, before any inference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

from jopa_ppl.beliefs import Belief, Variable
from jopa_ppl.errors import SiteError, StructureError, names
from jopa_ppl.graph import drawing, tables
from jopa_ppl.graph import links as conjugacy
from jopa_ppl.program.carry import Context, Reader, base_name, input_key, lag
from jopa_ppl.program.parameters import GAUSSIAN
from jopa_ppl.program.program import Plate, Program, Site

RULES = ("linearise", "cubature")     # approximate messages of a likelihood


@dataclass(frozen=True)
class Factor:
    """The log-density of one site in one context, and what it depends on.

    `latents` are instance names of Gaussian latents in the residual, `knowns` of observed sites and
    of inputs of the scan that it is affine in, `noise` names of latents in the precision (or, for
    gamma, in the rate).
    """

    site: Site
    context: Context
    family: str                       # normal | mvn | gamma | wishart | likelihood
    plates: tuple[Plate, ...]         # batch axes of the factor, by position
    latents: tuple[str, ...]
    knowns: tuple[str, ...]
    noise: tuple[str, ...]
    varying: frozenset[str]           # plates (and "time") along which its coefficients differ
    noise_varying: bool
    products: tuple[tuple[str, ...], ...]
    noise_key: str
    message: str = "exact"            # exact | amortised | linearise | cubature
    reason: str = ""                  # why it is not exact: the operation, file and line
    reads: bool = False               # whether it is made of values of other observed sites

    @property
    def name(self) -> str:
        return self.site.name + self.context.label

    @property
    def dims(self) -> int:
        return prod(self.site.shape) // prod(p.size for p in self.plates)

    @property
    def observed(self) -> tuple[str, ...]:
        """Those of its `knowns` that are observed sites."""
        return tuple(n for n in self.knowns if input_key(n) is None)

    @property
    def in_bulk(self) -> bool:
        """Whether it has a time axis."""
        return self.context.scan is not None and self.context.at is None

    @property
    def approximate(self) -> bool:
        """Whether its message is that of a likelihood at the present belief."""
        return self.message in RULES

    def instances_of(self, block: Belief) -> list[str]:
        """The instances of a block that it touches: those outside the scan, then the latest last.
        """
        members = block.members
        mine = [n for n in self.latents if base_name(n) in members]
        return sorted(mine, key=lambda n: (-(lag(n) if lag(n) is not None else 10**6),
                                           members.index(base_name(n))))

    @property
    def value(self) -> str | None:
        """Instance of the site's own value where that is latent."""
        if self.site.observed and not self.site.partial:
            return None
        return self.site.name if self.context.scan is None else f"{self.site.name}@0"


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
        """The block that holds a latent (by site or instance name)."""
        base = base_name(name)
        return next(b for b in self.blocks if base in b.members)

    def __str__(self) -> str:
        return tables.graph_table(self)

    def render(self, path: str) -> str:
        """Draw the graph as SVG: with graphviz where installed, else with Matplotlib."""
        return drawing.render(self, path)


def barren(program: Program, reader: Reader) -> tuple[str, ...]:
    """Latents from which no path leads to an observed site."""
    children: dict[str, set[str]] = {name: set() for name in program.sites}
    strays: list[str] = []       # outside of a scan, not proved to belong to its steps
    for site in program.sites.values():
        outputs = site.parameters
        scan = None if site.scan is None else program.scans[site.scan]
        for context in [Context()] if scan is None else reader.contexts(scan):
            for dependence in reader.dependence(outputs, context):
                for name in dependence.names:
                    if name.startswith("!scan"):
                        strays.append(site.name)
                    if base_name(name) in children:
                        children[base_name(name)].add(site.name)
    for form in reader.forms.values():
        for seed, (site, _) in form.seeds:
            children[seed] |= children[site]
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
                    found="the final carry or the stacked outputs of a scan, in a way that is not "
                          "step by step",
                    expected="a Gaussian whose first axis is time and whose every element sees its "
                             "own step alone, or an observed Gaussian of the last carry",
                    fix="move the statement into the body of the scan")
            return tuple(n for n in program.sites if n not in alive)
        alive |= more


def factor_of(reader: Reader, site: Site, context: Context, alive: set[str],
            lost: set[tuple[str, str]], wanted: str | None) -> Factor:
    """The factor of a site: conjugate if it can be, with an approximate message if it may be."""
    _check_value(reader, site, context)
    likely = site.likelihood is not None and not site.partial
    if wanted in RULES and not likely:
        raise StructureError("only observed sites send approximate messages", site=site.name,
                             found=f"messages={{'{site.name}': '{wanted}'}}",
                             expected="an observed site", fix="leave it out of messages=")
    if wanted == "amortised" and not site.amortized:
        raise StructureError("it has no encoder", site=site.name, found="messages='amortised'",
                             expected="a jp.Amortized likelihood",
                             fix="choose 'linearise' or 'cubature', or wrap the likelihood")
    if wanted in RULES and site.amortized:
        return _likelihood_factor(reader, site, context, alive, lost, wanted, "")
    try:
        factor = _conjugate_factor(reader, site, context, alive, lost)
    except StructureError as error:
        if not likely:
            raise
        try:
            other = _likelihood_factor(reader, site, context, alive, lost, wanted or RULES[0],
                                       str(error.found))
        except StructureError as worse:
            raise (worse if wanted else error) from None
        if not (wanted or reader.program.networks):
            raise error.with_fix(
                f"{error.fix}; or let its likelihood send an approximate message: "
                f"jp.VMP(model, messages={{'{site.name}': 'linearise'}})") from None
        return other
    return replace(factor, message="amortised") if site.amortized else factor


def _check_value(reader: Reader, site: Site, context: Context) -> None:
    """Refuse an observed value that is made of latents."""
    values = [site.outputs["value"]] if "value" in site.outputs else []
    made = {base_name(n) for d in reader.dependence(values, context) for n in d.names
            if _is_latent(reader.program, n)}
    if made:
        raise StructureError(
            f"what it observes is made of {names(sorted(made))}", site=site.name,
            found="obs= with a latent in it", expected="data, or values of observed sites",
            fix=f"of a Gaussian, observe zeros with the difference as the mean: Normal(loc - "
                f"{min(made)}, scale) at 0 is Normal(loc, scale) at {min(made)}; or make it data "
                "with jp.condition")


def _likelihood_factor(reader: Reader, site: Site, context: Context, alive: set[str],
                       lost: set[tuple[str, str]], rule: str, reason: str) -> Factor:
    """A factor whose message is that of its likelihood at the present belief."""
    program, found = reader.program, reader.dependence(site.likelihood.leaves, context)
    latents = sorted({n for d in found for n in d.names
                      if base_name(n) in alive and _is_latent(program, n)})
    for name in latents:
        if program.sites[base_name(name)].family not in GAUSSIAN:
            raise StructureError(
                f"its likelihood depends on '{base_name(name)}', which is not Gaussian",
                site=site.name, found=program.sites[base_name(name)].family,
                expected="Gaussian latents in a likelihood that is not conjugate",
                fix="fix it, or learn it as a weight of a network (jp.module)")
    own = {p.name for p in site.plates}
    lost |= {(base_name(n), p.name) for n in latents for p in program.sites[base_name(n)].axes
             if p.name not in own}
    mixed = sorted({(base_name(n), p) for d in found for n, p in d.lost if n in latents and p in own
                    })
    if mixed:
        name, plate = mixed[0]
        raise StructureError(
            f"its likelihood mixes elements of plate '{plate}'", site=site.name,
            found=f"elements that depend on several elements of '{name}'",
            expected="every element of the plate apart", fix="batch the network over the plate")
    return Factor(site, context, "likelihood", site.plates, tuple(latents), (), (), frozenset(),
                  False, tuple((n,) for n in latents), "", rule, reason)


def _conjugate_factor(reader: Reader, site: Site, context: Context, alive: set[str],
                      lost: set[tuple[str, str]]) -> Factor:
    program = reader.program
    plates = site.axes
    conjugacy.check_family(site)
    noise_key = next((k for k in conjugacy.NOISE_KEYS if k in site.outputs), "rate")
    if site.family in ("gamma", "wishart"):
        noise_key = next(k for k in ("rate", "rate_matrix", "scale_matrix", "scale_tril")
                         if k in site.outputs)
    keys = ("loc", noise_key) if site.family in GAUSSIAN else ("concentration", noise_key)
    mean, noise = reader.dependence([site.outputs[k] for k in keys], context)
    latent = {n for d in (mean, noise) for n in d.names if base_name(n) in alive
              and _is_latent(program, n)}
    noise_names = conjugacy.check_noise(site, noise_key, noise, latent, program)
    weights = [site.outputs[k] for k in ("weight",) if k in site.outputs]
    for d in reader.dependence(weights, context):
        if any(_is_latent(program, n) for n in d.names):
            raise StructureError("a scale or mask depends on a latent", site=site.name,
                                 found=f"dependence on {', '.join(sorted(d.names))}",
                                 expected="weights made of data", fix="compute it from data")
    if site.family not in GAUSSIAN:
        conjugacy.check_constant(site, "concentration", mean, latent)
        return Factor(site, context, site.family, plates, (), (), noise_names, frozenset(), False,
                      (), noise_key)
    products, knowns = conjugacy.check_mean(site, mean, latent, program, context.at is not None)
    varying, names = set(), sorted({n for p in products for n in p if n in latent})
    for plate in plates:
        axis = mean.axes[plate.axis]
        own = axis.plate == plate.name
        if axis.varies or (axis.plate is not None and not own):
            varying.add(plate.name)
        if axis.plate is not None and not own:
            lost |= {(base_name(n), axis.plate) for n in names}
    for i, axis in enumerate(mean.axes):
        if axis.plate is not None and i not in {p.axis for p in plates}:
            lost |= {(base_name(n), axis.plate) for n in names}
    for name in names:
        for plate in program.sites[base_name(name)].axes:
            if plate.name not in {p.name for p in plates}:
                lost.add((base_name(name), plate.name))
    lost |= {(base_name(n), p) for n, p in mean.lost}
    moving = [n for n in mean.names if n.startswith("~") and n not in knowns]
    odd = [n for n in mean.names if not n.startswith("~") and not _is_latent(program, n)
           and n not in knowns]
    if context.scan is not None and context.at is None and (moving or odd):
        varying.add("time")
    if odd:     # observed sites in the coefficients: each element has its own
        varying |= {p.name for p in plates}
    varying_noise = bool([n for n in noise.names if n.startswith("~")
                          or not _is_latent(program, n)])
    reads = any(base_name(n) in program.sites and not _is_latent(program, n)
                for d in (mean, noise) for n in d.names)
    own = ()
    if not site.observed or site.partial:
        own = (site.name if context.scan is None else f"{site.name}@0",)
        products += (own,)
        varying |= {p.name for p in plates if (site.name, p.name) in reader.dense}
    return Factor(site, context, site.family, plates, (*own, *names), tuple(sorted(knowns)),
                  noise_names, frozenset(varying), varying_noise, products, noise_key,
                  reads=reads)


def _is_latent(program: Program, instance: str) -> bool:
    site = program.sites.get(base_name(instance))
    return site is not None and (not site.observed or site.partial)
