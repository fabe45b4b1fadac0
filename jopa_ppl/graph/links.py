"""Is a factor conjugate? If not, say which operation at which line of the program made it so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jopa_ppl.errors import StructureError, names
from jopa_ppl.program.carry import Reader
from jopa_ppl.program.determinants import check_matrix, check_selection
from jopa_ppl.program.flat import JUMPS, flat
from jopa_ppl.program.program import Program, Site
from jopa_ppl.program.refs import Ref
from jopa_ppl.program.segments import Segment
from jopa_ppl.proof.dependence import Dependence

SUPPORTED = ("a density with a slope over real numbers, positive ones, an interval, a simplex or "
             "matrices (whatever NumPyro's biject_to maps to), or Categorical, Bernoulli or "
             "DiscreteUniform")


class NoSlopeError(StructureError):
    """What no rule has a message of."""


def check_family(site: Site) -> None:
    """Refuse a family that has no conjugate update."""
    if site.rules.noise:
        return
    raise StructureError(
        "VMP has no conjugate update for this family", site=site.name,
        found=site.described,
        expected=SUPPORTED + (", or jp.Amortized around a likelihood" if site.observed else ""),
        fix="wrap the likelihood in jp.Amortized(likelihood, on=x, message=encode)"
        if site.observed else "of a count, cut it off: dist.Categorical over its first values with "
        "their probabilities; or make it data with jp.condition")


def _blamed(site: Site, what: str, d: Dependence, ref: Ref, blame: object) -> StructureError:
    operation = getattr(blame, "operation", "an operation")
    where = getattr(blame, "where", "unknown")
    return StructureError(
        f"{what} is not affine in '{ref.site}'", site=site.name,
        found=f"operation '{operation}' at {where}",
        expected="a mean that is affine in each latent separately (matmul, einsum, sums, slices, "
                 "stacks, products with data)",
        fix="rewrite the mean, make the latent data with jp.condition, linearise it and pass "
            "A_t, B_t, c_t as inputs, or run SVI or NUTS on the same program")


def check_mean(site: Site, mean: Dependence, latent: set[Ref], program: Program, first: bool,
               curved: set[Ref] = frozenset()
               ) -> tuple[tuple[tuple[Ref, ...], ...], set[Ref]]:
    """The products of latents (and observed sites) the mean is a sum of, and the observed sites
    and inputs of the scan it is affine in; `first`: in one of the first steps of a scan; `curved`:
    latents that it need not be affine in, each of which counts as a product of its own."""
    latent = latent - curved
    for ref, blame in mean.nonlinear.items():
        if ref in latent:
            raise _blamed(site, "the mean", mean, ref, blame)
    known = {r for r in mean.names - latent if (r.is_site and program.sites[r.site].observed)
             or _is_small_input(site, r, program)} - set(mean.nonlinear)
    products = set()
    for monomial, blame in mean.monomials.items():
        inside = []
        if any(r in latent and (first or r.back is not None) for r, _ in monomial):
            # Data that multiply a state, or a first state, belong to the coefficients, which then
            # vary in time.
            known -= {r for r, _ in monomial}
        for ref, exponent in monomial:
            if ref in latent:
                if exponent != 1:
                    raise _blamed(site, "the mean", mean, ref, blame)
                other = program.sites[ref.site]
                if not other.rules.location:
                    raise StructureError(
                        f"the mean depends on '{ref.site}', which is not Gaussian",
                        site=site.name,
                        found=f"{other.family} in a mean"
                              + (f", by '{blame.operation}' at {blame.where}" if blame else ""),
                        expected="Gaussian latents in means",
                        fix="give it a Normal prior, or use it as a precision")
                inside.append(ref)
            elif exponent != 1:
                known.discard(ref)
        if inside:
            data = [r for r, _ in monomial if r.is_site and r not in latent | curved]
            # What it is linearised in meets each of the others, and never itself.
            bent = [(r,) for r, _ in monomial if r in curved] or [()]
            products |= {(*sorted(inside), *r, *sorted(data)) for r in bent}
        # The residual is probed in known sites one by one: of those that multiply each other only
        # one (that of a step, if any) stays apart, the others belong to the coefficients.
        together = sorted((r for r, _ in monomial if r in known),
                          key=lambda r: (r.back is not None, r))
        known -= set(together[:-1])
    if curved:          # no array is probed apart: coefficients are made anew at every belief
        return tuple(sorted(products | {(r,) for r in curved})), set()
    return tuple(sorted(products)), known


def _is_small_input(site: Site, ref: Ref, program: Program) -> bool:
    """Whether it is a real input of a scan, and none of the site's plates can be an axis of it:
    probed as one vector it is then as small as what one element sees of it."""
    if not ref.is_input or not program.is_real(ref.site):
        return False
    return not any(p.size in program.shapes[ref.site] for p in site.axes)


def check_noise(site: Site, key: str, noise: Dependence, latent: set[Ref], program: Program
                ) -> tuple[str, ...]:
    """The latents the precision is a product of, or the products that data choose from; each must
    enter with power 1.

    For gamma the same of its rate, for wishart none.
    """
    touched = [r for r in noise.names if r in latent]
    if not touched:
        return ()
    sites = tuple(sorted({r.site for r in touched}))
    what = site.rules.noun
    for ref in touched:
        if ref in noise.nonlinear:
            blame = noise.nonlinear[ref]
            raise StructureError(
                f"{what} is not a power of '{ref.site}'", site=site.name,
                found=f"operation '{blame.operation}' at {blame.where}",
                expected="a precision proportional to a Gamma or Wishart latent",
                fix="write the scale as 1 / jnp.sqrt(tau) with tau Gamma, or precision_matrix=W "
                    "with W Wishart")
    whole = site.rules.by_matrix and site.rules.location        # one matrix for all elements
    if not noise.single or not noise.chosen or (whole and len(noise.monomials) > 1):
        raise StructureError(
            f"{what} is a sum", site=site.name,
            found=f"a sum of terms in {names(sites)}",
            expected="a product of data and Gamma or Wishart latents",
            fix="give each noise a site of its own (an extra latent with its own precision)")
    for ref, exponent, blame in ((r, e, b) for m, b in noise.monomials.items() for r, e in m):
        if ref not in latent:
            continue
        name = ref.site
        other, family = program.sites[name].rules, program.sites[name].family
        power = exponent * site.rules.noise[key]
        if family not in site.rules.made_of or key not in (other.enters_as or (key,)):
            way = next((k for k in other.enters_as if k in site.rules.noise), "")
            raise StructureError(
                f"{what} depends on '{name}' ({family})", site=site.name,
                found=f"{family} in {key}", expected="Gamma (in any parametrisation) or Wishart "
                "(as precision_matrix)" if site.rules.location else "data",
                fix=f"pass {way}={name}" if way else "make it Gamma or Wishart, or data")
        if power != 1:
            raise StructureError(
                f"{what} has the wrong power of '{name}'", site=site.name,
                found=f"precision ~ {name}^{power}"
                      + (f", by '{blame.operation}' at {blame.where}" if blame else ""),
                expected=f"precision ~ {name}^1",
                fix="a Gamma or Wishart latent is a precision: use scale = 1 / jnp.sqrt(tau), or "
                    "precision_matrix=W")
    if site.scan is not None and any(r.back is not None for r in touched):
        raise StructureError(
            "a precision that is drawn anew at each step is not supported by VMP", site=site.name,
            found=names(sites), expected="precisions drawn outside the scan",
            fix="move the Gamma or Wishart site out of the scan")
    if site.rules.of_elements:
        check_selection(site, key, sites, program)
    if site.rules.by_matrix and site.rules.location:
        check_matrix(site, key, sites, program)
    return sites


def check_slope(site: Site, outputs: Sequence[int], latent: set[Ref], jumps: Mapping[Ref, object],
                program: Program) -> None:
    """Refuse what only jumps with a latent: no message comes of a slope of zero.

    Args:
        outputs: that its density is made of. latent: those of it that it need not be affine in.
        jumps: by latent, which operation it goes through, where it is told.
    """
    for ref in sorted(flat(program, outputs, latent)):
        blame = jumps.get(ref)
        raise NoSlopeError(
            f"it has no slope in '{ref.site}'", site=site.name,
            found="a density that only jumps with it" + (
                f", by '{blame.operation}' at {blame.where}"
                if blame and blame.operation in JUMPS else ""),
            expected="a density that is differentiable in each continuous latent",
            fix=f"make '{ref.site}' discrete (dist.Categorical over its steps, whose index may go "
                f"through any function), or the jump smooth: jax.nn.sigmoid(({ref.site} - t) / "
                f"width) in place of {ref.site} > t")


def check_sign(site: Site, reader: Reader, segment: Segment) -> None:
    """Refuse a scale that is a Gaussian latent itself, which may be negative."""
    key = site.rules.noise_key(site.outputs)
    for noise in reader.dependence([site.outputs[key]], segment) if key == "scale" else ():
        for ref, exponent in (pair for m in noise.monomials for pair in m):
            other = reader.program.sites[ref.site] if ref.is_site else None
            odd = exponent.denominator == 1 and exponent.numerator % 2
            if other is None or other.observed or ref in noise.nonlinear or not odd:
                continue
            if other.rules.location:
                raise StructureError(
                    f"its scale depends on '{ref.site}' ({other.family})", site=site.name,
                    found=f"{other.family} in {key}, which may be negative",
                    expected="a scale that is positive whatever its latents are",
                    fix=f"write jnp.exp({ref.site}), or give it a prior over positive numbers "
                        "(dist.HalfNormal, dist.LogNormal, dist.Gamma)")


def check_constant(site: Site, key: str, dependence: Dependence, latent: set[Ref]) -> None:
    """Refuse a parameter that depends on latents where no conjugate prior exists for it."""
    touched = sorted(r.site for r in dependence.names if r in latent)
    if touched:
        raise StructureError(f"its {key} depends on {names(touched)}", site=site.name,
                             found="a latent parameter", expected=f"a {key} made of data",
                             fix="fix it, or run SVI or NUTS on the same program")


def no_recursion(site: Site, found: str) -> StructureError:
    """The error of a carry that follows with certainty, in a way that is not affine."""
    return StructureError(
        f"the carry of the scan is not affine in what it is made of, {site.name}", site=site.name,
        found=found, expected="a value of a site, or an affine function of Gaussian sites and of "
        "the carry before", fix="draw what the step carries, x = jp.latent('x', Normal(mean, "
        "scale)), in place of the noise that it adds; where it follows surely, with a scale of "
        "1e-2 of its spread (below 1e-4 of it rounding takes digits). The mean may then be any "
        "function")
