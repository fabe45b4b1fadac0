"""Variational message passing: `VMP(model).run(*args)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jax import Array

from jopa_ppl.engine.compiled import Compiled, Options, compiled_for, refuse_traced, run
from jopa_ppl.engine.outcome import after
from jopa_ppl.engine.signature import Call
from jopa_ppl.errors import JopaError, check_model, whole, within
from jopa_ppl.graph.factor import RULES
from jopa_ppl.infer.batches import PosteriorBatch, run_batch
from jopa_ppl.infer.starts import best_of_starts
from jopa_ppl.language.keys import as_key
from jopa_ppl.linalg.chain import METHODS as chain_methods
from jopa_ppl.posterior.posterior import Posterior

METHODS = (*chain_methods, "funsor")


class VMP:
    """Compile a NumPyro program into variational message passing and run it.

    Each sweep sets every block's belief by its message, the gradient of U = E_q[log p] in the
    block's expected statistics: exact where the program is conjugate, by quadrature where it is
    not; the free energy F = -ELBO (nats) never rises.

    Args:
        model: a NumPyro program (jp.condition and jp.given wrap it).
        decide: site, or sites, of actions: plan instead of infer (see jopa_ppl.engine.plan). Where
            states or goals are no affine functions of them, it goes along paths from several
            beginnings side by side, at most `max_iters` of each, and keeps the best: `plan.start`
            says which it was (see jopa_ppl.engine.paths).
        blocks: tuples of site names that share one joint belief; default: see `jp.compile`.
        chain: "auto", "sequential", "parallel" or "funsor": how a chain block is eliminated.
        max_iters: sweeps at most.
        tol: stop when a sweep changes F by less than tol * max(1, |F|) and the means of every block
            by less than sqrt(tol) of their standard deviations (root mean square); F is quadratic
            in the beliefs' errors. 0 stops only where nothing changes any more.
        damping: weight of the old belief after each update, in [0, 1); None for none.
        messages: {site: "quadrature", "linearise", "cubature" or "amortised"}: the message of a
            site that is not conjugate (jp.explain says which): slope and curvature of log p at the
            belief's mean ("linearise": F is then Laplace's approximation, no bound), or expected
            over the belief: by Gauss-Hermite points up to three latents and above by 2 n points
            ("cubature") or over the parameters of each element, exact where these are affine in
            the latents ("quadrature"; see jopa_ppl.linalg.nonconjugate). A step that would raise F
            is halved. Default: its encoder's where it has one (jp.Amortized), "linearise" in
            programs that declare a network (jp.module), else "quadrature".
        extrapolate: whether the sweeps of a conjugate program that are slow start ahead of where
            the last one ended, as far as the sweeps before tell, wherever that lowers F (see
            jopa_ppl.engine.extrapolation), and turn and scale states that are multiplied by other
            latents (jopa_ppl.engine.rotation); not with `damping`. It needs fewer sweeps by far
            where beliefs trade off against each other: states against the loading that they are
            seen by.
        progress: show a bar when a run takes long.
        starts: where beliefs may settle in several places (mixtures, regimes), from how many starts
            to run, side by side; the one that comes to the least F is kept, and `posterior.starts`
            has F of all. The first is that of `rng_key` alone, the others begin with globals about
            as far off as their priors are wide (see jopa_ppl.infer.starts); their sweeps do not
            start ahead. One pass needs no more, plans have their own.

    Raises (in `run`):
        StructureError, ShapeError, DataError, SiteError, PriorError, NumericalError; each names
        the site, what was found, what was expected and the way out.

    Source: Winn & Bishop 2005; Hoffman, Johnson & Tran 2018 ("Autoconj").
    """

    def __init__(self, model: Callable, *, decide: str | tuple[str, ...] | None = None,
                 blocks: tuple[tuple[str, ...], ...] | None = None, chain: str = "auto",
                 max_iters: int = 200, tol: float = 1e-6, damping: float | None = None,
                 messages: Mapping[str, str] | None = None, extrapolate: bool = True,
                 progress: bool = True, starts: int = 1) -> None:
        check_model(model)
        if chain not in METHODS:
            raise JopaError("unknown chain method", found=repr(chain), expected=METHODS,
                            fix="leave it at 'auto'")
        whole("jp.VMP", max_iters=max_iters, starts=starts)
        within("jp.VMP", 0, float("inf"), tol=tol)
        within("jp.VMP", 0, 1, damping=damping or 0)
        flags = (progress, extrapolate)
        if not (all(isinstance(x, bool | np.bool_) for x in flags)
                and isinstance(messages or {}, Mapping)):
            raise JopaError("an option has the wrong type",
                            found=f"progress={progress!r}, extrapolate={extrapolate!r}, "
                                  f"messages={messages!r}",
                            expected="True or False, and a dict {site: message} or None",
                            fix="see help(jp.VMP)")
        self.model, self.progress, self.starts = model, progress, int(starts)
        decide = _sites((decide,) if isinstance(decide, str) else decide, "decide", "'u' or ('u',)")
        expected = "[('A', 'B'), ('x', 'u')]"
        lists = isinstance(blocks, Sequence) and not isinstance(blocks, str)
        blocks = tuple(_sites(b, "blocks", expected) for b in (blocks if lists else [blocks])
                       ) if blocks else None
        if decide and starts > 1:
            raise JopaError("plans have starts of their own", found=f"decide={decide}, "
                            f"starts={starts}", expected="decide= or starts=",
                            fix="leave starts= out: plan.start says which beginning won")
        kinds = (*RULES, "amortised")
        for name, kind in (messages or {}).items():
            if kind not in kinds:
                raise JopaError("unknown message in messages=", site=name, found=repr(kind),
                                expected=kinds, fix="choose one of them")
        self.options = Options(decide, blocks, chain, int(max_iters), float(tol), damping,
                               tuple(sorted((messages or {}).items())), bool(extrapolate))

    def compile(self, *args: Any, **kwargs: Any) -> Compiled:
        """The compiled program for these arguments (compiled once per program and shapes)."""
        compiled, call = compiled_for(self.model, self.options, args, kwargs)
        return compiled if compiled.fits(call) else self.unchecked(args, kwargs)[0]

    def unchecked(self, args: tuple, kwargs: dict) -> tuple[Compiled, Call]:
        """As `compile`, of forms that hold whatever the data; and the call."""
        return compiled_for(self.model, self.options, args, kwargs, checked=False)

    def run(self, *args: Any, rng_key: Array | int | None = None,
            init: Mapping[str, Any] | None = None, **kwargs: Any) -> Posterior:
        """Run the model's program on data; arguments are those of the model.

        `rng_key`, a key or a seed, only serves to break symmetries at the start (default: 0).
        `init`, of a plan through steps that are not affine: actions {site: (T, ..)} that it may
        begin with, beside its own beginnings; `plan.shifted(1)` of the last plan, say.
        """
        key = as_key(rng_key)
        refuse_traced(key)
        several = best_of_starts(self.model, self.options, args, kwargs, key, self.starts,
                                 self.progress) if self.starts > 1 and init is None else None
        compiled, call, ran, starts = several or (*run(
            self.model, self.options, args, kwargs, key, self.progress, init), None)
        posterior = Posterior(compiled, call, ran.told._replace(moments=ran.moments), ran.bound,
                              ran.history, ran.plan, sites=ran.sites, starts=starts)
        after(compiled, call, ran.told, ran.history, lambda: posterior)
        return posterior

    def run_batch(self, *args: Any, over: str | Sequence[str], rng_key: Array | int | None = None,
                  **kwargs: Any) -> PosteriorBatch:
        """Many runs at once, side by side in one compiled program: data sets, goals, starts.

            plans = jp.VMP(model, decide="u").run_batch(goals, T=20, over="y")
            plans.mean("u")     # (batch, 20, du)
            plans[3]            # a Posterior

        Args:
            over: names of arguments of the model, or of sites of `jp.condition` and of
                distributions of `jp.given`, that hold a value for every run: one more axis in
                front. Everything else is shared.

        Raises:
            SiteError, ShapeError: `over` does not fit the call. As `run` for any of the runs, the
            first one that is at fault named by its number.
        """
        if self.starts > 1:
            raise JopaError("a batch begins once a run", found=f"starts={self.starts}",
                            expected="starts=1", fix="run its data sets one by one")
        return run_batch(self.model, self.options, args, kwargs, over, as_key(rng_key))


def _sites(value: Any, option: str, expected: str) -> tuple[str, ...]:
    """The site names that an option lists."""
    if value is None:
        return ()
    fine = isinstance(value, Iterable) and not isinstance(value, str)
    names = tuple(value) if fine else (None,)
    if not all(isinstance(name, str) for name in names):
        raise JopaError(f"{option}= takes tuples of site names", found=repr(value),
                        expected=f"such as {option}={expected}", fix="see help(jp.VMP)")
    return names

