"""What is wrong with the data and priors of a run, as numbers and as errors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.engine.densities import density_of, numbers_of
from jopa_ppl.engine.energy import Energy
from jopa_ppl.engine.evidence import FactorArrays
from jopa_ppl.engine.numbers import SYMMETRIC, asymmetry
from jopa_ppl.engine.reading import Source, by_step, evaluate_in, read_series
from jopa_ppl.errors import DataError, DataWarning, PriorError, StructureError, names
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.program.tallies import is_marked

# By what `diagnose` counts, in the order in which they are told: the error and its parts, with what
# depends on that count or on the size of a matrix in braces.
FAULTS = (
    ("asymmetric", PriorError, "its matrix is not symmetric",
     "{count} elements that differ from their mirror images by more than 1e-4 of the diagonal",
     "a symmetric positive definite matrix", "symmetrise it: (M + M.T) / 2"),
    ("wishart_rate", PriorError, "the Wishart's matrix is not positive definite",
     "a Cholesky factorisation that fails", "a symmetric positive definite matrix",
     "check the rate_matrix or scale_matrix"),
    ("wishart_dof", PriorError, "the Wishart has too few degrees of freedom",
     "concentration <= {least}", "concentration > {least} (its size less one)",
     "use {enough} or more"),
    ("dirichlet", PriorError, "the Dirichlet's concentrations are not positive",
     "a concentration <= 0, or NaN", "concentrations > 0", "check the prior"),
    ("beta", PriorError, "the Beta's concentrations are not positive",
     "a concentration <= 0, or NaN", "concentrations > 0", "check the prior"),
    ("gamma", PriorError, "the Gamma's concentration or rate is not positive",
     "a concentration or rate <= 0, or NaN", "concentration > 0 and rate > 0", "check the prior"),
    ("precision", PriorError, "its covariance or precision is not positive definite",
     "a Cholesky factorisation that fails, or a scale that is zero, negative or not finite",
     "a symmetric positive definite matrix, or positive scales",
     "check the matrix, and the data it is computed from"),
    ("outside", DataError, "its data are none that its distribution gives",
     "{count} values outside of its support", "values within it",
     "check the data, or choose a distribution that has them"),
    ("coefficients", DataError, "its mean is not finite", "{count} NaN or infinite coefficients",
     "finite inputs: only observed values may be NaN (missing), and only where no other site is "
     "made of them",
     "fill the inputs; where others need a site's missing values, leave obs= out and pass its data "
     "to jp.condition, which infers them"),
    ("negative", DataError, "its weights are negative or not finite",
     "handlers.scale below zero, infinite or NaN", "weights >= 0", "check the weights"))


def bad_weight(a: FactorArrays) -> Array:
    """Weights that are negative or not finite (NaN included)."""
    return ~((a.weight >= 0) & jnp.isfinite(a.weight))


def diagnose(energy: Energy, data: dict[str, Array]) -> dict[str, dict[str, Array]]:
    """Counts of faults, site by site; compiled only when something is wrong."""
    graph = energy.graph
    outer, series = read_series(graph, data)
    known = {**outer, **{k: v for w in series for k, v in w.known.items()}}
    found: dict[str, dict[str, Array]] = {
        name: {"infinite": jnp.isinf(value).sum()} for name, value in known.items()}
    source = Source(graph, energy.slots, data, outer, series)
    for f in graph.factors:
        a = numbers_of(f, source)
        a = energy.without_gaps(f, a) if f.reads else a
        here = found.setdefault(f.site.name, {})

        def count(key: str, faults: Array, here: dict = here) -> None:
            here[key] = here.get(key, 0) + faults.sum()

        def skew(f: Factor, a: FactorArrays) -> Array:
            def noise(step: Array | int) -> Array:
                (found,) = evaluate_in(graph.reader, f, a.env, [f.site.outputs[f.noise_key]], {},
                                       step)
                return found

            return asymmetry(
                jax.vmap(noise)(jnp.arange(a.offset.shape[0])) if f.in_time else noise(0))

        if a.precision is not None:
            count("precision", ~jnp.isfinite(a.precision))
            count("precision", ~jnp.isfinite(a.logdet))
        faulty = lambda f, a: density_of(f).faults(energy, f, a)
        for key, faults in energy.each(f, faulty, a).items():
            count(key, faults)
        if f.site.likelihood is not None and f.site.status == "data":
            output, read = [f.site.likelihood.value], source.evaluator(f)
            count("outside", is_marked(by_step(f, True, lambda step, o=output, read=read: read(
                o, {}, step)[0])))
        count("negative", bad_weight(a))
        if not f.noise and f.noise_key in SYMMETRIC:
            count("asymmetric", energy.each(f, skew, a))
    return found


def informative_factors(graph: Graph) -> list[Factor]:
    """Factors whose data speak of latents; actions whose prior is fixed do not, unless alone."""
    observed = [f for f in graph.factors if f.site.observed]
    return [f for f in observed if f.touched or f.noise] or observed


def partly_missing(graph: Graph, values: Mapping[str, Array]) -> dict[str, Array]:
    """Numbers of events that are left out for a NaN in a part of them, by observed site."""
    found = {}
    for site in {f.site.name: f.site for f in graph.factors}.values():
        rows = site.rules.by_matrix and site.rules.location
        if rows and site.name in values and not (site.partial or site.amortized):
            value = values[site.name]
            event = tuple(range(value.ndim - len(site.event_shape), value.ndim))
            missing = jnp.isnan(value)
            found[site.name] = (missing.any(event) & ~missing.all(event)).sum()
    return found


def raise_if_missing(graph: Graph, checks: Mapping[str, Any], needed: bool = False) -> None:
    """Refuse data that are all left out, or all missing where they are `needed`; tell of those that
    are left out. A run of which nothing is seen else carries the prior forward.

    Raises:
        DataError: every value that says something about a latent is NaN, or shares its event with
            one that is. Warns with a DataWarning where only some events have a NaN.
    """
    partly = {name: int(n) for name, n in checks["partly"].items() if n}
    way_out = ("leave obs= out and pass the data with jp.condition(model, {{'{}': y}}), which uses "
               "every entry")
    unseen = not checks["seen"] and not any(v.site.partial for v in graph.variables.values())
    if unseen and (partly or needed):
        telling = informative_factors(graph)
        observed = dict.fromkeys(f.site.name for f in telling)
        encoded = any(f.site.amortized for f in telling)      # whole: one NaN hides a frame
        what = "row" if partly else "frame" if encoded else "value"
        raise DataError("all data are missing",
                        found=f"NaN in every {what} of {names(observed)}",
                        expected=f"at least one {what}" + " without NaN" * (what != "value"),
                        fix=way_out.format(next(iter(partly))) if partly else "check how the "
                        "arrays were built; to carry a prior forward run jp.VMP")
    for name, count in partly.items():
        warnings.warn(f"site '{name}': {count} rows are left out, for a NaN in a part of them: a "
                      "multivariate Normal's row is seen as a whole or not at all; "
                      + way_out.format(name), DataWarning, stacklevel=5)


def warn_if_untold(checks: Mapping[str, Any]) -> None:
    """Tell of beliefs that new data were to update, and of which the data of this run say nothing:
    a state is seen, and what moves it is not, as no later state is."""
    untold = [name for name, lost in checks["untold"].items() if lost]
    if checks["seen"] and untold:
        warnings.warn(
            f"given(update=True): no observation of this run reaches {names(untold)}, which stay"
            f"{'s' * (len(untold) == 1)} as given. What moves a state is learnt from the next one "
            "that is seen: start a window at the last state seen, {'x0': last.at('x', -2)}, with "
            "NaN for its frame (it is counted already) and the new frames after it",
            DataWarning, stacklevel=5)


def raise_for_plan(decide: tuple[str, ...], apart: list[str], checks: dict[str, Any]) -> None:
    """Refuse a plan without a goal, without a decision to take, or with evidence that is not used.

    Raises:
        DataError: every decision is data, or nothing is observed after the first one that is not.
        StructureError: data tell of first states that share no chain with the decisions.
    """
    if not checks["free"]:
        raise DataError("nothing is left to decide", site=decide[0],
                        found="data at every step", expected="NaN where there is a choice",
                        fix="leave decide= out: what follows from the data is their posterior")
    if not checks["goal"]:
        raise DataError("nothing is observed after the first decision", site=decide[0],
                        found="no preference: the plan would be the prior of the actions",
                        expected="a goal: an observed value at a later step",
                        fix="pass the goal with jp.sparse(T, {-1: goal}), over two steps or more")
    if checks["apart"]:
        raise StructureError("a first state is not of the chain that is planned", site=apart[0],
                             found="data that tell of it, which a plan would not use",
                             expected="a first state in the same plates as the states",
                             fix="draw it in the plate of the states; or leave out what is seen "
                                 "before the first decision, and give its belief: "
                                 f"jp.given(model, {{'{apart[0]}': filtered}})")


def raise_for_data(graph: Graph, checks: dict[str, dict[str, Array]]) -> None:
    """Raise the first error the data deserve; nothing if they are fine.

    Raises:
        DataError: infinities; negative weights; NaN in a model's inputs.
        PriorError: a matrix that is not symmetric or not positive definite, or too few degrees of
            freedom.
    """
    values = jax.device_get(checks)
    # Program order (jit sorts names): the first site at fault is the cause of those after it.
    found = {n: values[n] for n in graph.program.sites if n in values}
    for name, c in found.items():
        if c.get("infinite", 0):
            raise DataError("the data hold infinities", site=name,
                            found=f"{int(c['infinite'])} infinite values",
                            expected="finite numbers, or NaN for missing ones",
                            fix="replace them by NaN: jnp.where(jnp.isfinite(y), y, jnp.nan)")
    for name, c in found.items():
        for key, error, what, seen, expected, fix in FAULTS:
            if c.get(key, 0):
                size = (0, *graph.program.sites[name].shape)[-1]
                numbers = {"count": int(c[key]), "least": size - 1, "enough": size + 2.0}
                raise error(what, site=name, found=seen.format(**numbers),
                            expected=expected.format(**numbers), fix=fix.format(**numbers))
