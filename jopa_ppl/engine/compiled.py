"""A program compiled for given shapes: its graph, its schedule, and its jitted stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from tqdm.auto import tqdm

from jopa_ppl.beliefs import Belief
from jopa_ppl.compilation import Packed, Stages, often, once
from jopa_ppl.engine import extrapolation, rotation
from jopa_ppl.engine.beginnings import start
from jopa_ppl.engine.decision import Decision
from jopa_ppl.engine.engine import Engine
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.extrapolation import Pace
from jopa_ppl.engine.faults import (
    diagnose,
    raise_for_data,
    raise_for_plan,
    raise_if_missing,
    warn_if_untold,
)
from jopa_ppl.engine.marginals import parts
from jopa_ppl.engine.plan import planned
from jopa_ppl.engine.signature import Cache, Call, Traced, split_call, traced
from jopa_ppl.engine.state import State
from jopa_ppl.errors import JopaError
from jopa_ppl.graph.build import build_graph
from jopa_ppl.graph.factor import Factor
from jopa_ppl.program.carry import with_free_heads
from jopa_ppl.program.program import Program
from jopa_ppl.program.recursions import with_noise_apart
from jopa_ppl.settings import is_traced, ours

COMPILED = Cache(256)
CHUNK = 20           # sweeps between two looks at a run, at first


class Ran(NamedTuple):
    """What a run came to: `told`, its last state without the beliefs, on the host; `moments`, the
    beliefs; the program with its data; F of every sweep; the plan; marginals, where they came with
    it."""

    told: State
    moments: dict[str, Any]
    bound: Evidence
    history: Array
    plan: Any
    sites: tuple[dict, dict] | None


class Options(NamedTuple):
    """What `jp.VMP` was asked for, as it documents; hashable, a part of what is compiled."""

    decide: tuple[str, ...] = ()
    blocks: tuple[tuple[str, ...], ...] | None = None
    chain: str = "auto"
    max_iters: int = 200
    tol: float = 1e-6
    damping: float | None = None
    messages: tuple[tuple[str, str], ...] = ()
    extrapolate: bool = True


class Form(NamedTuple):
    """How a program is compiled. checked: whether blocks may have a form that only
    `Compiled.run` checks (`Belief.fits`); apart: the latents whose noise is a latent of its own
    (`recursions.with_noise_apart`)."""

    checked: bool = True
    apart: tuple[str, ...] = ()


PLAIN = Form()


class UnfitError(Exception):
    """A belief was chosen for a form of coefficients that the data of a run do not have."""


class Compiled(Stages):
    """A program compiled for given shapes: its `graph`, its `schedule`, and jitted sweeps."""

    def __init__(self, program: Program, options: Options, form: Form = PLAIN) -> None:
        super().__init__()
        self.options, self.form, self.traces = options, form, 0
        program = with_noise_apart(program, form.apart)
        program = replace(with_free_heads(program), planned=True) if options.decide else program
        self.graph = build_graph(program, options.blocks, dict(options.messages),
                                        options.chain, form.checked and not options.damping)
        self.checked = any(b.checked for b in self.graph.blocks)
        self.engine = Engine(self.graph)
        self.decision = Decision(self.engine, options.decide) if options.decide else None
        self.schedule = self.engine.schedule
        self.single = self.decision is not None or self.schedule.exact
        followed = extrapolation.followed(self.schedule)
        self.followed = followed if options.extrapolate and not options.damping else ()
        self.told = Packed()
        # One call for everything where one pass is exact; else the sweeps are compiled apart.
        self.first = jax.jit(self._first, compiler_options=often() if self.single else once())
        self.more = jax.jit(partial(self._more, heed=bool(self.followed)), donate_argnums=(0, 2),
                            compiler_options=often())
        # Compiled only where something is wrong.
        self.diagnose = jax.jit(lambda leaves: diagnose(self.engine.energy, self.data(leaves)),
                                compiler_options=once())
        self.ties = jax.jit(self.engine.ties, static_argnums=0, compiler_options=once())
        self.eased = jax.jit(self.engine.eased, static_argnums=(0, 1), compiler_options=once())
        self.precisions = jax.jit(lambda leaves, moments: self.decision.precisions(
            self.data(leaves), moments), compiler_options=once())

    def data(self, dynamic: list[Array]) -> dict[str, Array]:
        """What a call holds, as the engine reads it."""
        return {f"data/{i}": jnp.asarray(x) for i, x in enumerate(dynamic)}

    def _first(self, dynamic: list[Array], key: Array, until: Array,
               init: dict[str, Array] | None = None
               ) -> tuple[Evidence, State, Array, Any, tuple[dict, dict] | None, Array]:
        """All there is to do where one pass is exact, marginals included; else its beginning.
        Last, what the host looks at, for `told`."""
        self.traces += 1
        history, plan = jnp.full((self.options.max_iters,), jnp.nan), None
        if self.decision is not None:
            begun = self.decision.begun({}) if init is None else init
            bound, state, history, plan = planned(self.decision, self.data(dynamic), history,
                                                  begun, self.options.tol)
        else:
            bound = self.engine.evidence(self.data(dynamic))
            # What one pass solves has no symmetry to break; and is not to be far away at first.
            state = self.begun(None if self.single else key, bound)
            if self.single:
                state, history = self._more(state, bound, history, until)
        sites = parts(self.engine, state.moments, bound, plan) if self.single else None
        told = self.told.pack((state.told, history, bound.checks))
        return bound, state, history, plan, sites, told

    def begun(self, key: Array | None, bound: Evidence, scattered: bool = False) -> State:
        """No sweep yet; arguments as of `beginnings.start`."""
        state = start(self.engine, key, bound, scattered)
        pace = Pace(jnp.zeros(()), jnp.zeros((), bool)) if self.followed else None
        return state._replace(pace=pace)

    def ahead(self, state: State) -> State:
        """A slow run, whose sweeps start ahead from now on and turn its states."""
        return state._replace(ahead=extrapolation.beginning(self.followed, state.moments),
                              bfgs=rotation.beginning(self.schedule))

    def fits(self, call: Call) -> bool:
        """Whether the numbers of a call have the form that its beliefs were chosen for."""
        unfit = self.stage("unfit", lambda: jax.jit(
            lambda leaves: self.engine.evidence(self.data(leaves)).checks["unfit"],
            compiler_options=once()))
        with ours():
            return not (self.checked and unfit(call.dynamic))

    @property
    def stiff(self) -> tuple[str, ...]:
        """The latents of chains that would follow with certainty from noise drawn apart: their
        scale is data, and their mean is made of their own chain alone."""
        if self.form.apart:
            return ()
        by_site: dict[str, list[Factor]] = {}
        for f in self.graph.factors:
            by_site.setdefault(f.site.name, []).append(f)
        return tuple(
            n for b in self.graph.blocks for n in b.can_follow
            if all(f.plain and all(r.site in b.members for r in f.latents) for f in by_site[n]))

    @property
    def blocks(self) -> list[Belief]:
        """The blocks that a run solves for, as `State.digits` has them: of a plan its evidence and
        its decisions."""
        return ([self.decision.block] * 2 if self.decision is not None
                else [u.block for u in self.schedule.updates])

    def raise_for_data(self, dynamic: list[Array]) -> None:
        """Find out which site's data or prior are at fault, if any are, and say so."""
        with ours():
            raise_for_data(self.graph, self.diagnose(dynamic))

    def refuse(self, call: Call, checks: dict[str, Any]) -> None:
        """Refuse data that no run can be made of.

        Raises:
            DataError, StructureError: see `faults.py`. Warns with a DataWarning.
        """
        raise_if_missing(self.graph, checks)
        if self.decision is not None:
            raise_for_plan(self.options.decide, self.decision.apart, checks)
        else:
            warn_if_untold(checks)
        if checks["negative"] or checks["shape"]:
            self.raise_for_data(call.dynamic)

    def _more(self, state: State, bound: Evidence, history: Array, until: Array,
              heed: bool = False) -> tuple[State, Array]:
        return self.engine.advance(state, bound, history, until, self.options.tol,
                                   self.options.damping, heed)

    def run(self, call: Call, key: Array, progress: bool, init: Mapping[str, Any] | None = None
            ) -> Ran:
        """Start, and sweep until it has settled or gone wrong; `init` as in `jp.VMP.run`.

        Raises:
            DataError, StructureError: no run can be made of these data (`refuse`).
        """
        # Sums of many terms and precisions of 1e8 next to 1 need float64; the cost at these sizes
        # is small. Networks stay in the dtype of their weights.
        with ours():
            until = min(self.options.max_iters, CHUNK)
            begun = () if self.decision is None else (self.decision.begun(init or {}),)
            bound, state, history, plan, sites, told = self.first(call.dynamic, key, until, *begun)
            told, past, checks = self.told.unpack(told)
            if checks["unfit"]:
                raise UnfitError
            self.refuse(call, checks)
            if not self.single:
                state, history = self._sweep_on(state, bound, history, until, progress)
                told, past = jax.device_get((state.told, history))
        return Ran(told, state.moments, bound, past, plan, sites)

    def _sweep_on(self, state: State, bound: Evidence, history: Array, chunk: int, progress: bool
                  ) -> tuple[State, Array]:
        """Sweep until it has settled or gone wrong, in chunks between which the bar moves."""
        sweeps, done, bad, most, bar = 0, False, -1, self.options.max_iters, None
        while not done and bad < 0 and sweeps < most:
            begun, clock = sweeps, time.perf_counter()
            state, history = self.more(state, bound, history, min(sweeps + chunk, most))
            sweeps, done, bad = map(int, jax.device_get((state.sweep, state.converged, state.bad)))
            if self.followed and state.ahead is None and bool(state.pace.slow):
                state = self.ahead(state)
            spent = time.perf_counter() - clock
            chunk = max(10, min(1000, int((sweeps - begun) * 0.3 / max(spent, 1e-4))))
            if progress and (bar is not None or (not done and spent > 0.2)):
                bar = bar or tqdm(total=most, desc="VMP", unit="sweep", leave=False)
                bar.set_postfix(F=f"{float(state.free_energy):.6g}", refresh=False)
                bar.update(sweeps - bar.n)
        if bar is not None:
            bar.close()
        return state, history


def compiled_for(model: Callable, options: Options, args: tuple, kwargs: dict,
                 checked: bool = True) -> tuple[Compiled, Call]:
    """The compiled program for these arguments (compiled once per program and shapes).

    Args:
        model: a program, or a query of one; args, kwargs: what it is called with.
        options: of the run; checked: as in `Form`.

    Raises:
        JopaError: JAX traces an argument. As `trace_program` and `build_graph`.
    """
    call = split_call(model, args, kwargs)
    refuse_traced(call.dynamic)
    now = traced(call)

    compiled = COMPILED.get((now.key, options), partial(_made, now.program, options))
    if compiled.checked and not checked:
        compiled = _in_form(now, options, Form(False))
    return compiled, call._replace(traced=now)


def _made(program: Program, options: Options, form: Form = PLAIN) -> Compiled:
    with ours():
        return Compiled(program, options, form)


def _in_form(now: Traced, options: Options, form: Form) -> Compiled:
    return COMPILED.get((now.key, options, form), partial(_made, now.program, options, form))


def run(model: Callable, options: Options, args: tuple, kwargs: dict, key: Array, progress: bool,
        init: Mapping[str, Any] | None = None) -> tuple[Compiled, Call, Ran]:
    """Compile where it is not, and run: `Compiled.run`; in a form that fits the numbers.

    Args:
        model, options, args, kwargs: as in `compiled_for`.
        key: of the start; progress: whether a bar shows how far it is.
        init: by decision, actions to begin with; None: those of the prior.

    Raises:
        JopaError: `init` where nothing is decided. As `Compiled.run`.
    """
    if init is not None and not options.decide:
        raise JopaError("init= is where plans begin", found="no decide=", expected="a plan",
                        fix="leave it out; beliefs to begin with are given by jp.given")
    compiled, call = compiled_for(model, options, args, kwargs)
    try:
        ran = compiled.run(call, key, progress, init)
    except UnfitError:
        compiled = _in_form(call.traced, options, Form(False))
        COMPILED.put((call.traced.key, options), compiled)         # from now on
        ran = compiled.run(call, key, progress, init)
    if ran.told.serves or not (stiff := compiled.stiff):
        return compiled, call, ran
    apart = _in_form(call.traced, options, compiled.form._replace(apart=stiff))
    again = apart.run(call, key, progress, init)
    if int(again.told.bad) >= 0 or (int(ran.told.bad) < 0 and again.told.lost >= ran.told.lost):
        return compiled, call, ran
    return apart, call, again           # for these numbers; others have their own way


def refuse_traced(values: Any) -> None:
    """Refuse to run inside a function that JAX is tracing.

    Raises:
        JopaError: a leaf of the values is traced.
    """
    if is_traced(values):
        raise JopaError("VMP.run compiles itself", found="an argument traced by JAX",
                        expected="arrays of numbers",
                        fix="call it outside of jit and vmap; for many data sets use run_batch, or "
                            "a plate where they share what is learned")
