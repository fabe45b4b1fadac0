"""The steps of variational EM, compiled: message passing on all data, gradients on minibatches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax, random

from jopa_ppl.beliefs import Belief
from jopa_ppl.compilation import often, once, together
from jopa_ppl.descent import descended
from jopa_ppl.engine.beginnings import start
from jopa_ppl.engine.compiled import Compiled, compiled_for
from jopa_ppl.engine.engine import Engine
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.rounding import Digits
from jopa_ppl.engine.signature import Call, split_call
from jopa_ppl.errors import JopaError, StructureError, names
from jopa_ppl.graph.factor import Factor
from jopa_ppl.infer.vmp import VMP
from jopa_ppl.language.networks import Minibatch, Weights, WithWeights
from jopa_ppl.linalg.nonconjugate import drawn_score


class Training(Protocol):
    """What is read of a `VariationalEM`: the arguments that it was made with."""

    model: Callable
    optim: optax.GradientTransformation
    m_steps: int
    batch: int | None
    draws: int
    damping: float | None
    messages: dict[str, str] | None
    blocks: Any


class Progress(NamedTuple):
    """Where a run stands: everything that it needs to go on.

    free_energy: F after every E-step so far, (step + 1,), or (0,) before the first; noise: their
    standard errors.
    """

    weights: Weights
    optimiser: Any
    moments: dict[str, Any]
    free_energy: np.ndarray
    noise: np.ndarray
    step: int


class Data(NamedTuple):
    """The arguments of a run, as calls of the whole model and of its minibatches."""

    whole: Call
    batch: Call


def scored(engine: Engine) -> list[Factor]:
    """The factors whose messages stand for a likelihood: amortised, linearised, by cubature."""
    found = [f for f in engine.graph.factors
             if f.message == "amortised" or (f.scored and f.site.observed)]
    for f in found:
        blocks = [b for b, _ in engine.energy.slots[f.name] if b is not None]
        seen = {r for d in engine.graph.reader.dependence(f.site.likelihood.leaves, f.segment)
                for r in d.names if r.is_site and r.site in engine.graph.variables}
        if len(blocks) != 1 or not seen <= set(f.latents):
            raise StructureError("its decoder sees more than its message is about",
                                 site=f.site.name, found=f"{names(map(str, sorted(seen)))} in the "
                                 f"decoder, {names(map(str, sorted(f.latents)))} in the message",
                                 expected="the same latents",
                                 fix="let `on` and the decoder depend on one state")
    return found


def objective(engine: Engine, factors: list[Factor], moments: dict[str, Any], bound: Evidence,
              key: Array, draws: int) -> tuple[Array, Array]:
    """F with the decoders' log p at `draws` draws of the state, and its Monte-Carlo variance.

    The messages' own energies, which shaped q, are taken out again.
    """
    stats = engine.stats(moments, bound.clamps)
    value, variance = engine.free_energy(moments, bound), jnp.zeros(())
    for i, f in enumerate(factors):
        arrays = engine.energy.shared(f, bound.arrays[f.name], stats)
        score, view = engine.energy.scored(f, arrays, stats)
        noise = random.normal(random.fold_in(key, i), (draws, *view.mean.shape))
        found = jax.vmap(lambda eps, s=score, v=view: drawn_score(s, v, eps))(noise)
        value = value + engine.energy.factor(f, arrays, stats) - found.mean(0).sum()
        if draws > 1:       # steps and trajectories are drawn apart, so their variances add
            variance = variance + found.var(0, ddof=1).sum() / draws
    return value, variance


class Learner:
    """A model compiled for EM: the E-step on all data, the M-step on minibatches."""

    def __init__(self, em: Training, weights: Weights, args: tuple, kwargs: dict) -> None:
        self.em, self.plate, self.size = em, None, 1
        self.full, call = self._compiled(WithWeights(em.model, weights), args, kwargs)
        self.traced = call.traced
        self.local = self._blocks(self.full.engine)
        self.small = self.full
        if em.batch is not None:
            self.plate, self.size = self._plate(em.batch)
            self.small = self._part(weights, args, kwargs)
            if self.small.checked != self.full.checked:     # one belief of what they share
                self.full, self.small = (
                    self._compiled(self._model(weights, index), args, kwargs, False)[0]
                    for index in (None, jnp.arange(em.batch)))
                self.local = self._blocks(self.full.engine)
        self.factors = scored(self.full.engine)
        self.call = self.data(weights, args, kwargs).batch      # for its static parts
        self.begin = jax.jit(self._begin, compiler_options=once())
        self.traces, self.light = 0, None

    def compile(self, data: Data, now: Progress, key: Array, light: bool) -> None:
        """Make `e_step` and `m_step` for the arrays of this run, once; if `light`, XLA spends less
        time on them than it could, and they are made again for a run where that would not do."""
        if self.light is None or (self.light and not light):
            self.light = light
            self.m_step, self.e_step = (jax.jit(f, compiler_options=once() if light else often())
                                        for f in (self._m_step, self._e_step))
            leaves = self.leaves(data.whole, now.weights)
            together((self.m_step, (data.batch.dynamic, now.weights, now.optimiser, now.moments,
                                    key)),
                     (self.e_step, (leaves, now.moments, key, 1)))

    def fits(self, weights: Weights, args: tuple, kwargs: dict) -> bool:
        """Whether its beliefs have a form for these numbers."""
        return all(compiled.fits(call) for compiled, call in zip(
            (self.full, self.small), self.data(weights, args, kwargs)))

    def _compiled(self, model: Callable, args: tuple, kwargs: dict, structured: bool = True
                  ) -> tuple[Compiled, Call]:
        """A model compiled for these arguments, matrices in a form of their own where they may."""
        em = self.em
        vmp = VMP(model, damping=em.damping, messages=em.messages, blocks=em.blocks, progress=False)
        compiled, call = compiled_for(model, vmp.options, args, kwargs, structured)
        if structured and not compiled.fits(call):
            return compiled_for(model, vmp.options, args, kwargs, False)
        return compiled, call

    def _part(self, weights: Weights, args: tuple, kwargs: dict) -> Compiled:
        try:
            return self._compiled(self._model(weights, jnp.arange(self.em.batch)), args, kwargs)[0]
        except (TypeError, ValueError) as error:
            if isinstance(error, JopaError):
                raise
            raise StructureError(
                "batch= takes a part of the plate, and the program cannot run on a part of it",
                site=self.plate, found=str(error).partition("\n")[0],
                expected="every array with one entry a trajectory to be a site's data, or to be "
                "indexed by the plate",
                fix=f"index it inside: with jp.plate('{self.plate}', {self.size}) as i: c[i]"
            ) from error

    def _model(self, weights: Weights, index: Array | None) -> Callable:
        model = WithWeights(self.em.model, weights)
        return model if index is None else Minibatch(model, self.plate, index)

    def data(self, weights: Weights, args: tuple, kwargs: dict) -> Data:
        """The calls of a run."""
        index = None if self.plate is None else jnp.arange(self.em.batch)
        return Data(*(split_call(self._model(weights, i), args, kwargs) for i in (None, index)))

    def leaves(self, call: Call, weights: Weights, index: Array | None = None) -> list[Array]:
        """The array leaves of a call with other weights (and elements of the plate)."""
        _, args, kwargs = call.rebuild(call.dynamic)
        return split_call(self._model(weights, index), args, kwargs).dynamic

    def _blocks(self, engine: Engine) -> list[Belief]:
        """The blocks of states: chains, and Gaussians local to a plate."""
        return [u.block for u in engine.schedule.updates
                if u.block.gaussian and (u.block.scan is not None or u.block.plates)]

    def _plate(self, batch: int) -> tuple[str, int]:
        sizes = {p: self.full.graph.sizes[p] for b in self.local for p in b.plates}
        if len(sizes) != 1:
            raise StructureError(
                "batch= needs one plate of trajectories", found=f"plates of the states: {sizes}",
                expected="one plate",
                fix="put the trajectories in a jp.plate, or leave batch out")
        if not 1 <= batch <= min(sizes.values()):
            raise StructureError("batch= is out of range", found=f"batch={batch}",
                                 expected=f"1 to {min(sizes.values())}, the plate's size",
                                 fix="take fewer trajectories a step")
        return next(iter(sizes.items()))

    def _begin(self, leaves: list[Array], key: Array) -> dict[str, Any]:
        engine = self.full.engine
        return start(engine, key, engine.evidence(self.full.data(leaves))).moments

    def _e_step(self, leaves: list[Array], moments: dict[str, Any], key: Array, sweeps: int
                ) -> tuple[Evidence, dict[str, Any], Array, Array, Digits]:
        """Evidence, beliefs, F, its standard error, what rounding worked on in the last sweep."""
        self.traces += 1
        engine = self.full.engine
        bound = engine.evidence(self.full.data(leaves))

        def sweep(_: Array, now: tuple[dict, list]) -> tuple[dict, list]:
            moments, _, watched, _ = engine.sweep(now[0], bound, self.em.damping)
            return moments, watched

        moments, watched = lax.fori_loop(0, sweeps, sweep, (moments, engine.unwatched(moments)))
        value, variance = objective(engine, self.factors, moments, bound, key, draws=2)
        return bound, moments, value, jnp.sqrt(variance), engine.digits(moments, watched)

    def _loss(self, weights: Weights, call: Call, index: Array | None, moments: dict[str, Any],
              key: Array) -> Array:
        engine = self.small.engine
        bound = engine.evidence(self.small.data(self.leaves(call, weights, index)))
        factors = self.factors if index is None else scored(engine)
        for block in self._blocks(engine):
            moments = engine.update(block, engine.energy.touching(block), moments, bound)
        value, _ = objective(engine, factors, moments, bound, key, self.em.draws)
        return value * (1.0 if index is None else self.size / len(index))

    def _m_step(self, leaves: list[Array], weights: Weights, optimiser: Any,
                moments: dict[str, Any], key: Array) -> tuple[Weights, Any, Array]:
        """Weights, the optimiser's state, and whether the weights are finite."""
        self.traces += 1
        call = self.call._replace(dynamic=leaves)

        def one(carry: tuple, key: Array) -> tuple[tuple, None]:
            weights, optimiser = carry
            pick, draw = random.split(key)
            index, here = None, moments
            if self.plate is not None:
                index = random.choice(pick, self.size, (self.em.batch,), replace=False)
                here = {**moments, **{b.name: b.take(moments[b.name], self.plate, index)
                                      for b in self.local}}
            loss = partial(self._loss, call=call, index=index, moments=here, key=draw)
            return descended(self.em.optim, loss, weights, optimiser)[:2], None

        keys = random.split(key, self.em.m_steps)
        weights, optimiser = lax.scan(one, (weights, optimiser), keys)[0]
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(weights)]
        return weights, optimiser, jnp.stack(finite).all()
