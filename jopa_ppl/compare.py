"""`jp.compare`: the same program under several engines, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jax import Array, random

from jopa_ppl.colours import COLOURS
from jopa_ppl.engines import Program, Run, UseMarginalised, UseNUTS, UseSVI, UseVMP
from jopa_ppl.errors import JopaError, SiteError, check_model, names, whole
from jopa_ppl.graph.tables import table
from jopa_ppl.language.keys import as_key
from jopa_ppl.language.missing import from_masked
from jopa_ppl.plots.style import axes_of
from jopa_ppl.settings import under_ours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Engine = str | UseVMP | UseSVI | UseNUTS
ENGINES: dict[str, tuple] = {
    "vmp": (UseVMP(),), "nuts": (UseNUTS(),), "marginalised": (UseMarginalised(),),
    "svi": tuple(UseSVI(g) for g in ("normal", "multivariate", "chain")),
    **{f"svi {g}": (UseSVI(g),) for g in ("normal", "multivariate", "chain", "coupled")}}
# Chains that have met have an r-hat near 1 (Vehtari et al. 2021 want 1.01 of the final draws of an
# analysis). It is here the worst of every element of every site, from some hundred draws.
RHAT = 1.05
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


class Gap(NamedTuple):
    """A site against the reference, over its elements: difference of means in the reference's sds,
    ratio of sds."""

    mean: float
    worst: float
    ratio: float
    ratio_min: float
    ratio_max: float


@dataclass(frozen=True)
class Comparison:
    """Runs of several engines on one program; `print` shows them as tables.

    Free energies are -ELBO in nats of the same log joint with every normaliser in it, so they can
    be subtracted: the lower one is closer to the posterior, by that many nats of KL.

    `reference` is the run of NUTS (of "nuts" or "marginalised") that the others are measured
    against, the first whose chains agree
    (r-hat at most 1.05 in every element of every site); None where there is none.
    """

    program: Program = field(repr=False)
    runs: dict[str, Run]
    reference: str | None

    def __getitem__(self, engine: str) -> Run:
        return self.runs[engine]

    def gaps(self, engine: str) -> dict[str, Gap]:
        """How far an engine's marginals are from the reference's, by site.

        Wishart sites count their distinct elements once. {} without a reference.
        """
        if self.reference is None or not self.runs[engine].draws:
            return {}
        mine, other, found = self.runs[engine].draws, self.runs[self.reference].draws, {}
        for name in (n for n in other if n in mine):
            a, b = (_elements(x[name]) for x in (mine, other))
            sd = b.std(0)
            gap, ratio = np.abs(a.mean(0) - b.mean(0)) / sd, a.std(0) / sd
            found[name] = Gap(*map(float, (gap.mean(), gap.max(), np.exp(np.log(ratio).mean()),
                                           ratio.min(), ratio.max())))
        return found

    def __str__(self) -> str:
        header = ("engine", "free energy", "+-", "first result s", "warm s", "steps",
                  "divergences", "r-hat", "ESS", "note")
        text = table(header, [
            (r.name, _number(r.free_energy, 6), _number(r.error, 2) if r.error else "exact",
             _number(r.cold), _number(r.warm), str(r.steps), _number(r.divergences),
             _number(r.rhat), _number(r.ess), r.note) for r in self.runs.values()])
        rows = []
        for engine in self.runs:
            if engine != self.reference:
                rows += [(site, engine, f"{g.mean:.2f}", f"{g.worst:.2f}", f"{g.ratio:.2f}",
                          f"{g.ratio_min:.2f} to {g.ratio_max:.2f}")
                         for site, g in self.gaps(engine).items()]
        if rows:
            order = list(self.runs[self.reference].draws)
            rows.sort(key=lambda r: order.index(r[0]))
            text += (f"\n\nagainst {self.reference}: difference of means in its sds, ratio of sds\n"
                     + table(("site", "engine", "mean", "worst", "sd ratio", "range"), rows))
        for run in self.runs.values():
            if run.rhat is not None and not _met(run):
                text += (f"\n\nnothing is measured against {run.name}: its chains do not agree, "
                         f"r-hat is {run.rhat:.3g} and at most {RHAT} wanted. Give it more budget="
                         ", or more steps: engines=[.., jopa_ppl.engines.UseNUTS(num_warmup=..)]")
        return text

    def to_arviz(self, dims: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
        """{engine: ArviZ's DataTree (1.x) or InferenceData (0.x)}, all with the same dims."""
        from jopa_ppl.posterior.arviz import draws_to_arviz
        from jopa_ppl.tools.compiling import compile
        graph = compile(self.program.model, *self.program.args, **self.program.kwargs).graph
        return {n: draws_to_arviz(graph, r.draws, dims=dims, attrs={"engine": n})
                for n, r in self.runs.items() if r.draws}

    def plot_free_energy(self, ax: Axes | None = None) -> Axes:
        """Free energy (nats above the best, log scale) against time (s, warm), a curve an engine.

        Each curve is lifted by 0.01 nats, so that the best one has a place on the scale.
        """
        ax = axes_of(ax, (6, 4))
        # Where messages are approximate only the end is known, by Monte Carlo: a point.
        curves = {n: (r.times, r.bounds) if len(r.bounds) else ([r.warm], np.array([r.free_energy]))
                  for n, r in self.runs.items() if len(r.bounds) or np.isfinite(r.free_energy)}
        best = min((np.nanmin(bounds) for _, bounds in curves.values()), default=0.0)
        for i, name in enumerate(self.runs):
            if name in curves:
                times, bounds = curves[name]
                ax.plot(times, bounds - best + 0.01, color=_colour(i), ls=_style(i), label=name,
                        marker="o" if len(bounds) < 40 else None, ms=3 if len(bounds) > 1 else 7)
        ax.set(xscale="log", yscale="log", xlabel="time once compiled (s)",
               ylabel="free energy above the best (nats)")
        ax.tick_params(axis="x", which="minor", labelbottom=False)      # they would overlap
        ax.legend(frameon=False)
        return ax

    def plot_marginals(self, site: str, index: tuple[int, ...] = (), ax: Axes | None = None
                       ) -> Axes:
        """Histograms of one element of a site, an outline an engine, the reference filled.

        Raises:
            SiteError: no engine drew the site, or `index` does not pick one element.
        """
        ax = axes_of(ax, (6, 4))
        drawn = {n: r.draws[site] for n, r in self.runs.items() if site in r.draws}
        if not drawn:
            known = {n for r in self.runs.values() for n in r.draws}
            raise SiteError("no engine drew it", site=site, expected=names(sorted(known)))
        picked = {n: x[(slice(None), slice(None), *index)] for n, x in drawn.items()}
        if any(x.ndim != 2 for x in picked.values()):
            shape = next(iter(drawn.values())).shape[2:]
            raise SiteError("the index does not pick one element", site=site, found=index,
                            expected=f"an index into shape {shape}")
        whole = np.concatenate([x.ravel() for x in picked.values()])
        fewest = min(x.size for x in picked.values())       # few draws: wide bins, no ragged edges
        bins = np.linspace(*np.quantile(whole, [0.002, 0.998]), int(np.clip(fewest**0.5, 12, 50)))
        for i, name in enumerate(self.runs):
            if name in picked:
                filled = name == self.reference
                ax.hist(picked[name].ravel(), bins, density=True, label=name,
                        histtype="stepfilled" if filled else "step",
                        color="#bbbbbb" if filled else _colour(i), ls="-" if filled else _style(i))
        ax.set(xlabel=site + (f"[{','.join(map(str, index))}]" if index else ""), ylabel="density")
        ax.legend(frameon=False)
        return ax


@under_ours
def compare(model: Callable, *args: Any, engines: Sequence[Engine] = ("vmp", "svi", "nuts"),
            budget: float | Mapping[str, float] = 30.0, num_draws: int = 1000,
            rng_key: Array | int | None = None, progress: bool = True, **kwargs: Any) -> Comparison:
    """Run one unmodified program under several engines.

    Args:
        engines: "vmp", "nuts", "marginalised" (NUTS on `jp.marginalised` of the program, a
            reference too and often the quicker one), "svi" (three guides: AutoNormal,
            AutoMultivariateNormal and the Gauss-Markov one), "svi normal", "svi multivariate",
            "svi chain", "svi coupled"; or options: `jopa_ppl.engines.UseVMP`, `UseSVI`, `UseNUTS`,
            `UseMarginalised`.
        budget: seconds an engine may take once compiled, or {engine's name: seconds}. VMP ends
            when it has converged, NUTS when it has its draws.
        num_draws: joint draws of VMP's and of each guide's posterior.
        rng_key: default a fixed key; args, kwargs: of the model.

    Parameters of the program (`numpyro.param`, the weights of `jp.module`) are constants to every
    engine, so that free energies are of one and the same model and can be subtracted.

    Times are honest only for a program that has not been compiled before in the process, and with
    nothing else running. Where VMP's messages are approximate (`jp.Amortized`, a decoder), its
    belief is scored by Monte Carlo against the program itself, as the other engines' are.

    Raises:
        JopaError: an engine is unknown. An engine that fails on the program is noted, not raised.
    """
    whole("jp.compare", num_draws=num_draws)
    check_model(model)
    for limit in budget.values() if isinstance(budget, Mapping) else (budget,):
        try:
            fine = float(limit) >= 0
        except (TypeError, ValueError):
            fine = False
        if not fine:
            raise JopaError("an option is out of range", found=f"budget={budget!r}",
                            expected="seconds, 0 or more, or {engine's name: seconds}",
                            fix="see help(jp.compare)")
    chosen: list[Any] = []
    for engine in engines:
        if isinstance(engine, str) and engine not in ENGINES:
            raise JopaError("unknown engine", found=repr(engine), expected=names(ENGINES),
                            fix="or pass UseVMP, UseSVI or UseNUTS of jopa_ppl.engines")
        chosen += ENGINES[engine] if isinstance(engine, str) else (engine,)
    key = as_key(rng_key)
    program, runs = Program(model, *from_masked((args, kwargs))), {}
    for i, engine in enumerate(chosen):
        limit = budget.get(engine.name, 30.0) if isinstance(budget, Mapping) else budget
        try:
            run = engine.run(program, random.fold_in(key, i), limit, num_draws, progress)
        except JopaError as error:
            run = Run(engine.name, note=str(error).splitlines()[0])
        runs[engine.name] = run
    return Comparison(program, runs, next((n for n, r in runs.items() if _met(r)), None))


def _met(run: Run) -> bool:
    """Whether it is NUTS, and its chains agree."""
    return run.rhat is not None and bool(run.draws) and run.rhat <= RHAT


# `jopa_ppl.compare` is the function: `import jopa_ppl.compare as m` finds the module's names on it.
compare.compare, compare.Comparison, compare.Gap = compare, Comparison, Gap    # type: ignore


def _elements(draws: np.ndarray) -> np.ndarray:
    """(chains, draws, *shape) -> (chains * draws, distinct elements)."""
    flat = draws.reshape((-1, *draws.shape[2:]))
    if flat.ndim > 2 and flat.shape[-1] == flat.shape[-2] and np.allclose(
            flat, np.swapaxes(flat, -1, -2)):
        rows, columns = np.tril_indices(flat.shape[-1])
        flat = flat[..., rows, columns]
    return flat.reshape(len(flat), -1)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.{digits}g}"


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _style(i: int) -> Any:
    return STYLES[i % len(STYLES)]
