"""What is made of a run that rounding took digits of (`rounding`): a warning or an error that names
the sites, their scales, and which scale is safe."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jopa_ppl.beliefs import Belief
from jopa_ppl.engine.compiled import Compiled
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.rounding import ENERGY, EPS, ROUND, SAFE, SERVES, SILENT
from jopa_ppl.engine.signature import Call
from jopa_ppl.engine.state import State
from jopa_ppl.errors import NumericalError, NumericalWarning, names
from jopa_ppl.settings import ours


class Looked(Protocol):
    """What is read of the posterior of a run, which errors keep."""

    call: Call
    state: State
    bound: Evidence


def raise_or_warn(compiled: Compiled, told: State, posterior: Callable[[], Looked]) -> None:
    """Refuse a result that rounding has eaten; tell of one that has lost digits.

    Raises:
        NumericalError: the estimated error of a belief exceeds 1e-2 of its spread. Warns with a
            NumericalWarning from 1e-6 of a spread or 1e-4 nats on.
    """
    found = told.digits
    error, nats = told.lost
    if error <= SILENT and nats <= ENERGY:
        return
    at = int(np.argmax(np.maximum(EPS * found.tied, ROUND * found.far)))
    end = f"; estimated error {error:.1g} of its spread, {nats:.1g} nats of F"
    if nats == told.left_of_size and error <= SILENT:
        error_of = _error_of_size(compiled, posterior(), end)
    elif told.left_of_sums == (error, nats):
        error_of = _error_of_sums(posterior(), end)
    elif compiled.decision is not None and at == len(compiled.blocks) - 1:
        error_of = _error_of_plan(compiled, posterior(), end)
    else:
        error_of = _error(compiled, posterior(), compiled.blocks[at], end,
                          far=ROUND * found.far[at] > EPS * found.tied[at], eaten=error > SERVES)
    if error > SERVES:
        raise error_of("rounding has eaten the result")
    warnings.warn(str(error_of("rounding has taken digits of the result")), NumericalWarning,
                  stacklevel=4)


def raise_for_rounding(compiled: Compiled, posterior: Looked, bad: int) -> None:
    """Refuse a run in which rounding has left no positive definite precision.

    Raises:
        NumericalError: the precisions of the block that went wrong differ by 1e13 or more.
    """
    blocks, end = compiled.blocks, "; a precision that is no longer positive definite"
    if compiled.decision is not None:
        if _tightest(compiled, posterior)[2] > SERVES / EPS:
            raise _error_of_plan(compiled, posterior, end)("rounding has eaten the result")
    elif bad < len(blocks) and blocks[bad].gaussian:
        ties = _ties_of(compiled, posterior, blocks[bad])
        if ties.precision**0.5 * ties.spread > 0.1 / EPS**0.5:
            raise _error(compiled, posterior, blocks[bad], end, far=False, eaten=True)(
                "rounding has eaten the result")


class Tie(NamedTuple):
    """The site that holds a block most tightly: the precision that it gives to an element, with
    the spread and the mean of the belief about it, and the smallest scale that it has itself
    (coefficients, and several elements of it, make the precision larger); how `wide` the element
    could be without it; `met`: the spread is that which the site was met with on the way."""

    site: str
    precision: float
    spread: float
    mean: float
    scale: float
    wide: float
    met: bool

    @property
    def safe(self) -> float:
        """A scale of the site that costs a tenth of what may be lost without a word."""
        return self.scale * SAFE * self.spread * self.precision**0.5


def _error(compiled: Compiled, posterior: Looked, block: Belief, end: str, *, far: bool,
           eaten: bool) -> Callable[[str], NumericalError]:
    """The error, but for its first line; `far`: values are large, not ties tight; `eaten`: so tight
    that the spreads found mean nothing."""
    tie = _ties_of(compiled, posterior, block, far)
    size = abs(tie.mean)
    if far:
        found = f"values of {size:.2g} in beliefs that are {tie.spread:.2g} wide"
        expected = f"values below {SILENT / ROUND * tie.spread:.1g}, for that width"
        fix = "subtract an offset from the data, or measure them in another origin"
    else:
        tie = _once_eased(compiled, posterior, block, tie) if eaten and not tie.met else tie
        safe = tie.safe
        own = compiled.graph.program.sites
        found = (f"a scale of {tie.scale:.2g} beside "
                 f"{names([n for n in block.members if not own[n].noise_of])}, whose beliefs are "
                 f"{tie.spread:.2g} wide")
        expected = f"scales above {safe:.1g}, for that width"
        fix = (f"where it stands for an exact link, a scale of {safe:.1g} says the same to six "
               "digits, or write the link into the means of the other sites; where it does not, "
               "let what it tells apart stand further apart: other units, centred inputs")
    site = compiled.graph.program.sites[tie.site].noise_of or tie.site
    return lambda what: NumericalError(what, site=site, posterior=posterior,
                                       found=found + end, expected=expected, fix=fix)


def _error_of_sums(posterior: Looked, end: str) -> Callable[[str], NumericalError]:
    """As `_error`, of a matrix that is nearly singular, where what cancels in it is large."""
    with ours():
        known = jax.device_get({n: jnp.abs(P).max(initial=0.0)
                                for n, a in posterior.bound.arrays.items()
                                if (P := a.known_matrix) is not None})
    name = max(known, key=known.get)
    return lambda what: NumericalError(
        what, site=name.partition("[")[0], posterior=posterior,
        found="a covariance matrix whose elements, given each other, have scales of "
              f"{float(known[name])**-0.5:.2g}, and data far from what it allows" + end,
        expected="a matrix that is less singular, or data nearer to what it expects",
        fix="write what it is made of as latents of their own (a common part, and what differs), "
            "or add more to its diagonal (1e-8 of it, say)")


def _error_of_size(compiled: Compiled, posterior: Looked, end: str
                   ) -> Callable[[str], NumericalError]:
    """As `_error`, of data so far from what the program expects that F is all large numbers."""
    terms = compiled.stage("terms", lambda: jax.jit(compiled.engine.terms))
    with ours():
        found = jax.device_get(terms(posterior.state.moments, posterior.bound))
    name = max(found, key=lambda n: abs(found[n]))
    size = abs(float(found[name]))
    return lambda what: NumericalError(
        what, site=name.partition("[")[0], posterior=posterior,
        found=f"{size:.2g} nats of F, of values far from what it expects" + end,
        expected=f"an F below {ENERGY / EPS:.1g} nats",
        fix="look at its scale, its weight and the data: are these in other units, or is the scale "
            "too small?")


def _error_of_plan(compiled: Compiled, posterior: Looked, end: str
                   ) -> Callable[[str], NumericalError]:
    """As `_error`, of decisions whose goal is so tight that it leaves no digits to their prior."""
    site, scale, ratio = _tightest(compiled, posterior)
    tied = posterior.state.digits.tied[-1]
    error = EPS * float(tied if np.isfinite(tied) else ratio)
    safe = scale * (10 * error / SILENT)**0.5
    return lambda what: NumericalError(
        what, site=site, posterior=posterior,
        found=f"a scale of {scale:.2g} that the decisions {names(compiled.options.decide)} must "
              "meet" + end,
        expected=f"scales above {safe:.1g}, for the scales of these decisions",
        fix=f"a scale of {safe:.1g} asks for the same to six digits")


def _tightest(compiled: Compiled, posterior: Looked) -> tuple[str, float, float]:
    """The observed site of a plan with the smallest scale, that scale, and how many times larger
    its precision is than that of a decision."""
    with ours():
        found = jax.device_get(compiled.precisions(posterior.call.dynamic,
                                                   posterior.state.moments))
    own = min(found[name] for name in compiled.options.decide)
    site = max((n for n in found if n not in compiled.graph.variables), key=found.get)
    return site, float(found[site])**-0.5, float(found[site] / own)


def _ties_of(compiled: Compiled, posterior: Looked, block: Belief, far: bool = False) -> Tie:
    """Compiled only where something is wrong."""
    with ours():
        found = jax.device_get(compiled.ties(block, posterior.state.moments, posterior.bound))
    size = lambda t: abs(t[2]) if far else t[0] * (max(t[1], 0.0) or 1.0)
    name = max(found, key=lambda n: size(found[n]))
    most, digits = size(found[name]), posterior.state.digits
    tied = 0.0 if digits is None else float(digits.tied[compiled.blocks.index(block)])
    met = not far and np.isfinite(tied) and most < 0.1 * tied
    if met:         # what is most precise was so beside something wider that it has told since
        name = max(found, key=lambda n: found[n][0])
    site = name.partition("[")[0]
    precision, variance, mean, own = map(float, found[name])
    variance = tied / precision if met else variance
    # What the loosest of its other sites allows: as wide as an element could be without this one.
    others = [float(t[0]) for n, t in found.items() if n.partition("[")[0] != site and t[0] > 0]
    wide = min(others, default=precision)**-0.5
    spread = variance**0.5 if variance > 0 else wide       # 0: nothing is solved for yet
    return Tie(site, precision, spread, mean, (own or precision)**-0.5, wide, met)


def _once_eased(compiled: Compiled, posterior: Looked, block: Belief, tie: Tie) -> Tie:
    """With the spread that the element has next to a scale that is safe.

    Which one is, depends on the spread: begun with what is surely wide enough, which a vague prior
    makes as wide as can be, every pass comes nearer by the digits that are safe.
    """
    spread, share = float("inf"), min(1.0, 1 / (tie.wide**2 * tie.precision))
    for _ in range(6):
        with ours():
            J, C = map(float, jax.device_get(compiled.eased(
                block, tie.site, posterior.state.moments, posterior.bound, share)))
        if not (np.isfinite(J) and np.isfinite(C) and J > 0 and C > 0):
            break
        near, spread = C**0.5 > 0.5 * spread, C**0.5
        tie, share = tie._replace(precision=J, spread=spread), min(1.0, 1 / (SAFE**2 * C * J))
        if near:
            break
    return tie
