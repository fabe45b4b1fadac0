"""Variational message passing: `VMP(model).run(*args)`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm.auto import tqdm

from jopa_ppl.errors import JopaError, whole, within
from jopa_ppl.graph.build import build_graph
from jopa_ppl.graph.factor_graph import RULES, Block, Graph
from jopa_ppl.graph.program import Program
from jopa_ppl.graph.unroll import with_free_heads
from jopa_ppl.inference.checks import diagnose, raise_for_data
from jopa_ppl.inference.compilation import Packed, often, once
from jopa_ppl.inference.decide import Decision
from jopa_ppl.inference.engine import Bound, Engine, State
from jopa_ppl.inference.marginals import parts
from jopa_ppl.inference.outcome import after, before
from jopa_ppl.inference.signature import Cache, Call, split_call, traced
from jopa_ppl.keys import as_key
from jopa_ppl.settings import is_traced, ours

if TYPE_CHECKING:
    from jopa_ppl.batches import PosteriorBatch
    from jopa_ppl.posterior import Posterior

_COMPILED = Cache(256)
CHUNK = 20           # sweeps between two looks at a run, at first
METHODS = ("auto", "sequential", "parallel", "funsor")


class Compiled:
    """A program compiled for given shapes: its `graph`, its `schedule`, and jitted sweeps."""

    def __init__(self, program: Program, options: tuple) -> None:
        self.decide, blocks, method, self.max_iters, self.tol, self.damping, messages = options
        self.options, self.traces = options, 0
        program = with_free_heads(program) if self.decide else program
        self.graph: Graph = build_graph(program, blocks, dict(messages))
        self.engine = Engine(self.graph, method)
        self.decision = Decision(self.engine, self.decide) if self.decide else None
        self.schedule = self.engine.schedule
        self.single = self.decision is not None or self.schedule.exact
        self.told, self.batches = Packed(), {}
        # One call for everything where one pass is exact; else the sweeps are compiled apart.
        self.first = jax.jit(self._first, compiler_options=often() if self.single else once())
        self.more = jax.jit(self._more, compiler_options=often())
        self.diagnose = jax.jit(lambda leaves: diagnose(self.engine, self.data(leaves)),
                                compiler_options=once())

    def data(self, dynamic: list[Array]) -> dict[str, Array]:
        """What a call holds, as the engine reads it."""
        return {f"data/{i}": jnp.asarray(x) for i, x in enumerate(dynamic)}

    def _first(self, dynamic: list[Array], key: Array, until: Array
               ) -> tuple[Bound, State, Array, Any, tuple[dict, dict] | None, Array]:
        """All there is to do where one pass is exact, marginals included; else its beginning.
        Last, what the host looks at, for `told`."""
        self.traces += 1
        history, plan = jnp.full((self.max_iters,), jnp.nan), None
        if self.decision is not None:
            bound, state, history, plan = self.decision.run(self.data(dynamic), history)
        else:
            bound = self.engine.bind(self.data(dynamic))
            state = self.engine.start(key, bound)
            if self.single:
                state, history = self.engine.advance(state, bound, history, until, self.tol,
                                                     self.damping)
        sites = parts(self.engine, state.moments, bound, plan) if self.single else None
        told = self.told.pack((state._replace(moments=None), history, bound.checks))
        return bound, state, history, plan, sites, told

    @property
    def blocks(self) -> list[Block]:
        """The blocks that a run solves for, as `State.digits` has them: of a plan its evidence and
        its decisions."""
        return ([self.decision.block] * 2 if self.decision is not None
                else [u.block for u in self.schedule.updates])

    def raise_for_data(self, dynamic: list[Array]) -> None:
        """Find out which site's data or prior are at fault, if any are, and say so."""
        with ours():
            raise_for_data(self.graph, self.diagnose(dynamic))

    def _more(self, state: State, bound: Bound, history: Array, until: Array
              ) -> tuple[State, Array]:
        return self.engine.advance(state, bound, history, until, self.tol, self.damping)


class VMP:
    """Compile a NumPyro program into variational message passing and run it.

    Each sweep sets every block's belief to its exact conjugate update, the gradient of
    U = E_q[log p] in the block's expected statistics; the free energy F = -ELBO (nats) never rises.

    Args:
        model: a NumPyro program (jp.condition and jp.given wrap it).
        decide: site, or sites, of actions: plan instead of infer (see jopa_ppl.inference.decide).
        blocks: tuples of site names that share one joint belief; default: see `jp.compile`.
        chain: "auto", "sequential", "parallel" or "funsor": how a chain block is eliminated.
        max_iters: sweeps at most.
        tol: stop when a sweep changes F by less than tol * max(1, |F|) and the means of every block
            by less than sqrt(tol) of their standard deviations (root mean square); F is quadratic
            in the beliefs' errors. 0 stops only where nothing changes any more.
        damping: weight of the old belief after each update, in [0, 1); None for none.
        messages: {observed site: "linearise", "cubature" or "amortised"}: the message of a site
            that is not conjugate: slope and curvature of log p at the belief's mean ("linearise": F
            is then Laplace's approximation, no bound), or expected over the belief ("cubature": by
            Gauss-Hermite points up to three latents, by 2 n points above). A step that would raise
            F is halved. Default: its encoder's where it has one (jp.Amortized), "linearise" in
            programs that declare a network (jp.module), else an error.
        progress: show a bar when a run takes long.

    Raises (in `run`):
        StructureError, ShapeError, DataError, SiteError, PriorError, NumericalError; each names
        the site, what was found, what was expected and the way out.

    Source: Winn & Bishop 2005; Hoffman, Johnson & Tran 2018 ("Autoconj").
    """

    def __init__(self, model: Callable, *, decide: str | tuple[str, ...] | None = None,
                 blocks: tuple[tuple[str, ...], ...] | None = None, chain: str = "auto",
                 max_iters: int = 200, tol: float = 1e-6, damping: float | None = None,
                 messages: Mapping[str, str] | None = None, progress: bool = True) -> None:
        if not callable(model):
            raise JopaError("the model is not callable", found=type(model).__name__,
                            expected="a NumPyro program (a function)", fix="pass the function")
        if chain not in METHODS:
            raise JopaError("unknown chain method", found=repr(chain), expected=METHODS,
                            fix="leave it at 'auto'")
        whole("jp.VMP", max_iters=max_iters)
        within("jp.VMP", 0, float("inf"), tol=tol)
        within("jp.VMP", 0, 1, damping=damping or 0)
        if not isinstance(progress, bool | np.bool_) or not isinstance(messages or {}, Mapping):
            raise JopaError("an option has the wrong type",
                            found=f"progress={progress!r}, messages={messages!r}",
                            expected="True or False, and a dict {site: message} or None",
                            fix="see help(jp.VMP)")
        self.model, self.progress = model, progress
        decide = _sites((decide,) if isinstance(decide, str) else decide, "decide", "'u' or ('u',)")
        expected = "[('A', 'B'), ('x', 'u')]"
        lists = isinstance(blocks, Sequence) and not isinstance(blocks, str)
        blocks = tuple(_sites(b, "blocks", expected) for b in (blocks if lists else [blocks])
                       ) if blocks else None
        kinds = (*RULES, "amortised")
        for name, kind in (messages or {}).items():
            if kind not in kinds:
                raise JopaError("unknown message in messages=", site=name, found=repr(kind),
                                expected=kinds, fix="choose one of them")
        self.options = (decide, blocks, chain, int(max_iters), float(tol), damping,
                        tuple(sorted((messages or {}).items())))

    def compile(self, *args: Any, **kwargs: Any) -> Compiled:
        """The compiled program for these arguments (compiled once per program and shapes)."""
        return self._compiled(args, kwargs)[0]

    def _compiled(self, args: tuple, kwargs: dict, model: Callable | None = None
                  ) -> tuple[Compiled, Call]:
        model = self.model if model is None else model
        call = split_call(model, args, kwargs)
        _refuse_traced(call.dynamic)
        now = traced(call)
        compiled = _COMPILED.get((now.key, self.options), lambda: self._compile(now.program))
        return compiled, call._replace(traced=now)

    def _compile(self, program: Program) -> Compiled:
        with ours():
            return Compiled(program, self.options)

    def run(self, *args: Any, rng_key: Array | int | None = None, **kwargs: Any) -> Posterior:
        """Run the model's program on data; arguments are those of the model.

        `rng_key`, a key or a seed, only serves to break symmetries at the start (default: 0).
        """
        from jopa_ppl.posterior import Posterior

        key = as_key(rng_key)
        _refuse_traced(key)
        compiled, call = self._compiled(args, kwargs)
        # Sums of many terms and precisions of 1e8 next to 1 need float64; the cost at these sizes
        # is small. Networks stay in the dtype of their weights.
        with ours():
            until = min(compiled.max_iters, CHUNK)
            bound, state, history, plan, sites, told = compiled.first(call.dynamic, key, until)
            told, past, checks = compiled.told.unpack(told)
            before(compiled, call, checks)
            if not compiled.single:
                state, history = self._sweep_on(compiled, state, bound, history, until)
                told, past = jax.device_get((state._replace(moments=None), history))
        posterior = Posterior(compiled, call, told._replace(moments=state.moments), bound, past,
                              plan, sites=sites)
        after(compiled, call, told, past, lambda: posterior)
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
        from jopa_ppl.batches import run_batch
        return run_batch(self, args, kwargs, over, as_key(rng_key))

    def _sweep_on(self, compiled: Compiled, state: State, bound: Bound, history: Array, chunk: int
                  ) -> tuple[State, Array]:
        """Sweep until it has settled or gone wrong, in chunks between which the bar moves."""
        sweeps, done, bad, most, bar = 0, False, -1, compiled.max_iters, None
        while not done and bad < 0 and sweeps < most:
            begun, clock = sweeps, time.perf_counter()
            state, history = compiled.more(state, bound, history, min(sweeps + chunk, most))
            sweeps, done, bad = map(int, jax.device_get((state.sweep, state.converged, state.bad)))
            spent = time.perf_counter() - clock
            chunk = max(10, min(1000, int((sweeps - begun) * 0.3 / max(spent, 1e-4))))
            if self.progress and (bar is not None or (not done and spent > 0.2)):
                bar = bar or tqdm(total=most, desc="VMP", unit="sweep", leave=False)
                bar.set_postfix(F=f"{float(state.free_energy):.6g}", refresh=False)
                bar.update(sweeps - bar.n)
        if bar is not None:
            bar.close()
        return state, history


def _refuse_traced(values: Any) -> None:
    if is_traced(values):
        raise JopaError("VMP.run compiles itself", found="an argument traced by JAX",
                        expected="arrays of numbers",
                        fix="call it outside of jit and vmap; for many data sets use run_batch, or "
                            "a plate where they share what is learned")


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

