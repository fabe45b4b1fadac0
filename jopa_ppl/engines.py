"""VMP, SVI and NUTS on one program, each with a clock and a budget: what `jp.compare` runs.

Every engine reports the time to its first result (tracing and compilation included), the time it
takes once compiled, and joint draws of the same shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, random
from numpyro import handlers, infer
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.distributions import biject_to
from numpyro.infer.autoguide import AutoGuide, AutoMultivariateNormal, AutoNormal
from numpyro.infer.initialization import init_to_mean, init_to_median
from tqdm.auto import tqdm

from jopa_ppl.compilation import in_batches
from jopa_ppl.errors import JopaError
from jopa_ppl.infer.marginalised import marginalised
from jopa_ppl.infer.vmp import VMP
from jopa_ppl.posterior import density
from jopa_ppl.tools.guides import AutoGaussMarkov
from jopa_ppl.tools.runs import Program as Program
from jopa_ppl.tools.runs import Run as Run

GUIDES = ("normal", "multivariate", "chain", "coupled")
_SCORED = 128       # draws behind each reported value of the bound
_CHUNK = 20         # NUTS steps between looks at the clock


@dataclass(frozen=True)
class UseVMP:
    """Options of the engine "vmp"; see `jp.VMP`."""

    max_iters: int = 500
    tol: float = 1e-6
    blocks: tuple[tuple[str, ...], ...] | None = None
    messages: Mapping[str, str] | None = None
    name: str = "vmp"

    def run(self, program: Program, key: Array, budget: float, draws: int, progress: bool) -> Run:
        model, args, kwargs = program
        vmp = VMP(model, max_iters=self.max_iters, tol=self.tol, blocks=self.blocks,
                  messages=self.messages, progress=progress)
        cold, posterior = _timed(lambda: vmp.run(*args, **kwargs))
        warm, posterior = min((_timed(lambda: vmp.run(*args, **kwargs)) for _ in range(3)),
                              key=lambda pair: pair[0])
        drawn = posterior.sample(key, (draws,))
        bounds = np.asarray(posterior.free_energy, float)
        free_energy, error, note = float(bounds[-1]), 0.0, ""
        if any(f.message != "exact" for f in posterior.compiled.graph.factors):
            losses = posterior.log_prob(drawn) - density.log_joint(
                posterior.compiled, posterior.call, drawn)
            free_energy, error = float(losses.mean()), float(losses.std() / np.sqrt(draws))
            bounds, note = bounds[:0], f"approximate messages; their own F is {bounds[-1]:.6g}"
        elif not posterior.converged:
            note = "not converged"
        times = warm * (np.arange(len(bounds)) + 1) / max(len(bounds), 1)
        return Run(self.name, _one_chain(drawn), cold, warm, posterior.num_iters, times, bounds,
                   free_energy, error, note=note, result=posterior)


def _in_the_middle(site: dict | None = None) -> Any:
    """NumPyro's start at the prior's mean; at its median, where it has none (HalfCauchy)."""
    if site is None:
        return partial(_in_the_middle)
    mean = init_to_mean(site)
    if mean is None:
        return None
    return jnp.where(jnp.isfinite(mean), mean, init_to_median(site))


def _about_the_middle(site: dict | None = None) -> Any:
    """A start of its own for every chain, up to 1 from `_in_the_middle` on the real line that NUTS
    works on: chains that begin together agree whatever they missed."""
    if site is None:
        return partial(_about_the_middle)
    middle = _in_the_middle(site)
    if middle is None:
        return None
    line = biject_to(site["fn"].support)
    at = line.inv(middle)
    return line(at + random.uniform(site["kwargs"]["rng_key"], jnp.shape(at), minval=-1.0))


def default_optimiser() -> optax.GradientTransformation:
    """Adam whose rate falls as 1/sqrt(step): it needs no horizon, so any budget may end it."""
    return optax.adam(lambda step: 0.02 / jnp.sqrt(1 + step / 500))


@dataclass(frozen=True)
class UseSVI:
    """Options of an SVI engine.

    Args:
        guide: "normal" (AutoNormal), "multivariate" (AutoMultivariateNormal), "chain" (Gauss-Markov
            chains, mean-field against the rest), "coupled" (chains that lean on the rest), or a
            function of the model that returns a NumPyro guide.
        optim: an Optax or NumPyro optimiser; particles: draws a gradient step; steps: at most.
    """

    guide: str | Callable[[Callable], Any] = "chain"
    optim: Any = None
    particles: int = 4
    steps: int = 100_000
    label: str | None = None

    @property
    def name(self) -> str:
        if self.label:
            return self.label
        own = self.guide if isinstance(self.guide, str) else getattr(self.guide, "__name__", "own")
        return f"svi {own}"

    def make(self, program: Program) -> Any:
        """The guide for a program."""
        model, args, kwargs = program
        if callable(self.guide):
            return self.guide(model)
        if self.guide not in GUIDES:
            raise JopaError("unknown guide", found=repr(self.guide), expected=GUIDES,
                            fix="or pass a function of the model that returns a guide")
        if self.guide in ("chain", "coupled"):
            graph = VMP(model).compile(*args, **kwargs).graph
            return AutoGaussMarkov(model, graph, coupled=self.guide == "coupled")
        kind = AutoNormal if self.guide == "normal" else AutoMultivariateNormal
        return kind(model, init_loc_fn=_in_the_middle)

    def run(self, program: Program, key: Array, budget: float, draws: int, progress: bool) -> Run:
        model, args, kwargs = program
        start_key, score_key, draw_key = random.split(key, 3)
        begun = time.perf_counter()
        guide = self.make(program)
        loss = infer.Trace_ELBO(self.particles, vectorize_particles=self.particles > 1)
        # Parameters of the program, a network's weights among them, are constants to every engine.
        model = handlers.block(model, hide_fn=lambda site: site["type"] == "param")
        svi = infer.SVI(model, guide, self.optim or default_optimiser(), loss)
        state = svi.init(start_key, *args, **kwargs)

        def advance(state: Any, n: Array) -> Any:
            return jax.lax.fori_loop(0, n, lambda _, s: svi.update(s, *args, **kwargs)[0], state)

        def score(state: Any, key: Array) -> Array:
            params, one = svi.get_params(state), infer.Trace_ELBO()
            return in_batches(lambda k: one.loss(k, params, model, guide, *args, **kwargs),
                              random.split(key, _SCORED), 16)

        advance = jax.jit(advance).lower(state, 1).compile()
        compiling = time.perf_counter() - begun
        score = jax.jit(score)
        times, bounds, errors, spent, steps, note = [], [], [], 0.0, 0, ""
        with tqdm(total=budget, desc=self.name, unit="s", disable=not progress, leave=False,
                  bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s{postfix}") as bar:
            while not steps or (spent < budget and steps < self.steps):
                n = max(10, steps // 4)
                if steps:
                    n = int(min(n, (budget - spent) * steps / spent + 1))
                n = min(n, self.steps - steps)
                seconds, state = _timed(lambda n=n, s=state: advance(s, n))
                spent, steps = spent + seconds, steps + n
                losses = np.asarray(score(state, score_key), float)
                times.append(spent)
                bounds.append(losses.mean())
                errors.append(losses.std() / np.sqrt(len(losses)))
                bar.set_postfix(F=f"{bounds[-1]:.6g}", refresh=False)
                bar.update(min(seconds, budget - bar.n))
                if not np.isfinite(bounds[-1]):
                    note = f"diverged within {steps} steps"
                    break
        drawn: dict[str, Array] = {}
        if not note and errors[-1] > 5:
            note = "the loss scatters: not settled, or out of the float's precision"
        if np.isfinite(bounds[-1]):
            drawn = guide.sample_posterior(draw_key, svi.get_params(state), *args,
                                           sample_shape=(draws,), **kwargs)
            if isinstance(guide, AutoGuide):
                drawn = {n: x for n, x in drawn.items() if n in guide._init_locs}
        return Run(self.name, _one_chain(drawn), compiling + spent, spent, steps, np.array(times),
                   np.array(bounds), bounds[-1], errors[-1], note=note,
                   result=(guide, svi.get_params(state)))


@dataclass(frozen=True)
class UseNUTS:
    """Options of the engine "nuts"; chains run side by side, each from a start of its own."""

    num_warmup: int = 300
    num_samples: int = 500
    num_chains: int = 2
    max_tree_depth: int = 10
    init: Callable = _about_the_middle
    dense_mass: bool = False
    name: str = "nuts"

    def prepare(self, program: Program) -> tuple[Callable, dict[str, Any], tuple[str, ...]]:
        """The model that is sampled, options of NUTS, and sites to keep that are drawn back."""
        return program.model, {"init_strategy": self.init, "dense_mass": self.dense_mass}, ()

    def run(self, program: Program, key: Array, budget: float, draws: int, progress: bool) -> Run:
        _, args, kwargs = program
        begun = time.perf_counter()
        model, options, back = self.prepare(program)
        kernel = infer.NUTS(model, max_tree_depth=self.max_tree_depth, **options)
        state = kernel.init(random.split(key, self.num_chains), self.num_warmup, None, args, kwargs)

        def step(state: Any, _: None) -> tuple[Any, tuple]:
            state = kernel.sample(state, args, kwargs)
            return state, (state.z, state.diverging, state.num_steps)

        advance = jax.jit(lambda s: jax.lax.scan(step, s, length=_CHUNK)).lower(state).compile()
        compiling = time.perf_counter() - begun
        warmup = -(-self.num_warmup // _CHUNK)
        chunks = warmup + -(-self.num_samples // _CHUNK)
        kept, spent, leaps = [], 0.0, 0
        with tqdm(total=chunks * _CHUNK, desc=self.name, unit="step", disable=not progress,
                  leave=False) as bar:
            for i in range(chunks):
                if spent >= budget:
                    break
                seconds, (state, out) = _timed(lambda s=state: advance(s))
                spent, leaps = spent + seconds, leaps + int(out[2].sum())
                kept += [out[:2]] if i >= warmup else []
                bar.update(_CHUNK)
        if not kept:
            return Run(self.name, cold=compiling + spent, warm=spent, steps=leaps,
                       note=f"no draws: the budget of {budget:.0f} s ended in the warm-up")
        z, diverging = jax.tree.map(lambda *x: jnp.concatenate(x), *kept)
        chains = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), z)
        constrain = kernel.postprocess_fn(args, kwargs)
        flat = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), chains)
        outside = jax.jit(lambda f: in_batches(constrain, f, 64))
        begun = time.perf_counter()
        outside = outside.lower(flat).compile()
        compiling += time.perf_counter() - begun
        seconds, found = _timed(lambda: outside(flat))
        spent += seconds
        drawn = {n: np.asarray(x).reshape((self.num_chains, -1, *x.shape[1:]))
                 for n, x in found.items() if n in z or n in back}
        rhat = max(float(np.nanmax(split_gelman_rubin(x))) for x in drawn.values())
        ess = min(float(np.nanmin(effective_sample_size(x))) for x in drawn.values())
        note = "" if i == chunks - 1 else f"the budget of {budget:.0f} s ended the sampling"
        return Run(self.name, drawn, compiling + spent, spent, leaps, note=note, rhat=rhat, ess=ess,
                   divergences=int(np.sum(diverging)), result=state)


@dataclass(frozen=True)
class UseMarginalised(UseNUTS):
    """Options of the engine "marginalised": NUTS on `jp.marginalised` of the program (`over` as
    there), all sites drawn back; from VMP's belief, where it takes the program and `init` is left.
    """

    num_warmup: int = 100           # for the step size alone
    dense_mass: bool = True         # few latents are left
    over: tuple[str, ...] | None = None
    name: str = "marginalised"

    def prepare(self, program: Program) -> tuple[Callable, dict[str, Any], tuple[str, ...]]:
        model, args, kwargs = program
        rest = marginalised(model, over=self.over)
        options = super().prepare(program)[1]
        if self.init is _about_the_middle:
            with suppress(JopaError):
                options |= rest.start(*args, **kwargs)
        return rest, options, rest.integrated(*args, **kwargs)


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = run()
    jax.block_until_ready(result.state if hasattr(result, "bound") else result)
    return time.perf_counter() - begun, result


def _one_chain(draws: dict[str, Array]) -> dict[str, np.ndarray]:
    return {n: np.asarray(x)[None] for n, x in draws.items()}
