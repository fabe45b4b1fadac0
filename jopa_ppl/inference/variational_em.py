"""Variational EM: networks trained on the free energy that message passing lowers.

    F(weights, q) = -E_q[log p(y | x; weights)] + KL(q(x) q(theta) || p(x, theta))

E-step: sweeps of VMP, each frame's message being its encoder's (or the decoder's own, linearised).
M-step: Optax on the weights against F itself: q(x) follows from the encoder's messages through the
smoother, differentiably, and log p is the decoder's at reparametrised draws of the smoothed state.
So F is a bound on -log p(y) whatever the encoder, and both networks share one objective.

Source: Johnson et al. 2016, "Composing graphical models with neural networks"; Zhao & Linderman
2023, "Revisiting structured variational autoencoders".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax, random
from tqdm.auto import tqdm

from jopa_ppl.errors import JopaError, NumericalError, StructureError
from jopa_ppl.graph.factor_graph import Block, Factor
from jopa_ppl.inference.checks import raise_if_missing
from jopa_ppl.inference.compilation import often, once
from jopa_ppl.inference.engine import Bound, Engine, State
from jopa_ppl.inference.signature import Call, split_call
from jopa_ppl.inference.vmp import VMP
from jopa_ppl.messages.nonconjugate import drawn_score
from jopa_ppl.networks import Minibatch, Weights, WithWeights, weights_of

if TYPE_CHECKING:
    from jopa_ppl.posterior import Posterior


WARM_UP = 30    # sweeps of the first E-step at least: it starts from the prior


class Progress(NamedTuple):
    """Where a run stands: everything that it needs to go on.

    free_energy: F after every E-step so far, (step,) or, at the end, (step + 1,); noise: their
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
    found = [f for f in engine.graph.factors if f.message != "exact"]
    for f in found:
        blocks = [b for b, _ in engine.energy.slots[f.name] if b is not None]
        names = {n for d in engine.graph.reader.dependence(f.site.likelihood.leaves, f.context)
                 for n in d.names if n in engine.graph.variables or n.split("@")[0]
                 in engine.graph.variables}
        if len(blocks) != 1 or not names <= set(f.latents):
            raise StructureError("its decoder sees more than its message is about",
                                 site=f.site.name, found=f"{sorted(names)} in the decoder, "
                                 f"{sorted(f.latents)} in the message", expected="the same latents",
                                 fix="let `on` and the decoder depend on one state")
    return found


def objective(engine: Engine, factors: list[Factor], moments: dict[str, Any], bound: Bound,
              key: Array, draws: int) -> tuple[Array, Array]:
    """F with the decoders' log p at `draws` draws of the state, and its Monte-Carlo variance.

    The messages' own energies, which shaped q, are taken out again.
    """
    stats = engine.stats(moments, bound.clamps)
    value, variance = engine.free_energy(moments, bound), jnp.zeros(())
    for i, f in enumerate(factors):
        arrays = bound.arrays[f.name]
        score, view = engine.energy.score(f, arrays), engine.energy.view(f, arrays, stats)
        noise = random.normal(random.fold_in(key, i), (draws, *view.mean.shape))
        found = jax.vmap(lambda eps, s=score, v=view: drawn_score(s, v, eps))(noise)
        value = value + engine.energy.factor(f, arrays, stats) - found.mean(0).sum()
        if draws > 1:       # steps and trajectories are drawn apart, so their variances add
            variance = variance + found.var(0, ddof=1).sum() / draws
    return value, variance


class _Learner:
    """A model compiled for EM: the E-step on all data, the M-step on minibatches."""

    def __init__(self, em: VariationalEM, weights: Weights, args: tuple, kwargs: dict) -> None:
        self.em, self.plate, self.size = em, None, 1
        vmp = partial(VMP, damping=em.damping, messages=em.messages, blocks=em.blocks,
                      progress=False)
        self.full = vmp(WithWeights(em.model, weights)).compile(*args, **kwargs)
        self.factors = scored(self.full.engine)
        self.local = self._blocks(self.full.engine)
        self.small = self.full
        if em.batch is not None:
            self.plate, self.size = self._plate(em.batch)
            self.small = vmp(self._model(weights, jnp.arange(em.batch))).compile(*args, **kwargs)
        self.call = self.data(weights, args, kwargs).batch      # for its static parts
        self.begin = jax.jit(self._begin, compiler_options=once())
        self.e_step = jax.jit(self._e_step, compiler_options=often())
        self.m_step = jax.jit(self._m_step, compiler_options=often())

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

    def _blocks(self, engine: Engine) -> list[Block]:
        """The blocks of states: chains, and Gaussians local to a plate."""
        return [u.block for u in engine.schedule.updates
                if u.block.kind == "chain" or (u.block.kind == "dense" and u.block.plates)]

    def _plate(self, batch: int) -> tuple[str, int]:
        sizes = {p: self.full.graph.sizes[p] for b in self.local for p in b.plates}
        if len(sizes) != 1 or not 1 <= batch <= max(sizes.values()):
            raise StructureError(
                "batch= needs one plate of trajectories",
                found=f"batch={batch}, plates of the states: {sizes}",
                expected="one plate of at least that size",
                fix="put the trajectories in a jp.plate, or leave batch out")
        return next(iter(sizes.items()))

    def _begin(self, leaves: list[Array], key: Array) -> dict[str, Any]:
        engine = self.full.engine
        return engine.start(key, engine.bind(self.full._data(leaves))).moments

    def _e_step(self, leaves: list[Array], moments: dict[str, Any], key: Array, sweeps: int
                ) -> tuple[Bound, dict[str, Any], Array, Array]:
        engine = self.full.engine
        bound = engine.bind(self.full._data(leaves))
        moments = lax.fori_loop(0, sweeps, lambda _, m: engine.sweep(
            m, bound, self.em.damping)[0], moments)
        value, variance = objective(engine, self.factors, moments, bound, key, draws=2)
        return bound, moments, value, jnp.sqrt(variance)

    def _loss(self, weights: Weights, call: Call, index: Array | None, moments: dict[str, Any],
              key: Array) -> Array:
        engine = self.small.engine
        bound = engine.bind(self.small._data(self.leaves(call, weights, index)))
        factors = self.factors if index is None else scored(engine)
        for block in self._blocks(engine):
            moments = engine.update(block, engine.energy.touching(block), moments, bound)
        value, _ = objective(engine, factors, moments, bound, key, self.em.draws)
        return value * (1.0 if index is None else self.size / len(index))

    def _m_step(self, leaves: list[Array], weights: Weights, optimiser: Any,
                moments: dict[str, Any], key: Array) -> tuple[Weights, Any]:
        call = self.call._replace(dynamic=leaves)

        def one(carry: tuple, key: Array) -> tuple[tuple, None]:
            weights, optimiser = carry
            pick, draw = random.split(key)
            index, here = None, moments
            if self.plate is not None:
                index = random.choice(pick, self.size, (self.em.batch,), replace=False)
                here = {**moments, **{b.name: _take(b, moments[b.name], self.plate, index)
                                      for b in self.local}}
            slope = jax.grad(self._loss)(weights, call, index, here, draw)
            change, new = self.em.optim.update(slope, optimiser, weights)
            new = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, optimiser)
            return (optax.apply_updates(weights, change), new), None

        keys = random.split(key, self.em.m_steps)
        return lax.scan(one, (weights, optimiser), keys)[0]


def _take(block: Block, moments: Any, plate: str, index: Array) -> Any:
    """The beliefs of some elements of a plate."""
    axis = block.plates.index(plate)
    if block.kind == "dense":
        return jax.tree.map(lambda a: jnp.take(a, index, axis), moments)
    return moments._replace(logdet=jnp.take(moments.logdet, index, axis), **{
        name: jnp.take(getattr(moments, name), index, axis + 1)
        for name in ("mean", "cov", "cross", "diag", "off")})


class VariationalEM:
    """Learn the beliefs and the networks' weights of a program on one free energy.

    Args:
        model: a program that declares its networks with `jp.module` (`jp.condition` and `jp.given`
            wrap it).
        optim: an Optax optimiser of the weights, on the free energy in nats of all data.
        e_sweeps: sweeps of message passing a step; m_steps: optimiser steps a step.
        batch: trajectories (elements of the states' plate) an optimiser step; None for all.
        draws: of every state, for the expected log-likelihood in an optimiser step.
        checkpoint: a file that holds the run after every step; an interrupted run goes on from it.
        damping, messages, blocks: as in `jp.VMP`.
        progress: show a bar with the free energy and its Monte-Carlo error.

    Raises (in `run`): what `VMP.run` raises, and
        StructureError: no network to train, or no plate to take minibatches of.
        FileError: the checkpoint belongs to another program or other shapes.
    """

    def __init__(self, model: Callable, optim: optax.GradientTransformation, *, e_sweeps: int = 1,
                 m_steps: int = 10, batch: int | None = None, draws: int = 1,
                 checkpoint: str | None = None, damping: float | None = None,
                 messages: dict[str, str] | None = None, blocks: Any = None,
                 progress: bool = True) -> None:
        if min(e_sweeps, m_steps, draws) < 1:
            raise JopaError("an option is out of range",
                            found=f"e_sweeps={e_sweeps}, m_steps={m_steps}, draws={draws}",
                            expected="at least 1 each", fix="see help(jp.VariationalEM)")
        self.model, self.optim = model, optim
        self.e_sweeps, self.m_steps, self.batch, self.draws = e_sweeps, m_steps, batch, draws
        self.checkpoint, self.damping, self.progress = checkpoint, damping, progress
        self.messages, self.blocks = messages, blocks
        self._learners: dict[Any, _Learner] = {}
        self._interrupted: dict[Any, Progress] = {}

    def run(self, rng_key: Array, num_steps: int, *args: Any, **kwargs: Any
            ) -> tuple[Posterior, Weights]:
        """`num_steps` times an E-step and an M-step, then a last E-step.

        Arguments are those of the model. Returns the posterior, whose `free_energy` holds F after
        every E-step (num_steps + 1 values in nats, `free_energy_noise` their standard errors), and
        the weights by network: `jp.with_weights(model, weights)` is the trained program.

        After a KeyboardInterrupt, `run` with the same arguments goes on from the last step, in
        the same process or, with `checkpoint=`, in another one.
        """
        weights = weights_of(self.model, args, kwargs)
        if not weights:
            raise StructureError("the program has no network to train", found="no jp.module",
                                 expected="at least one network",
                                 fix="declare it inside the program: net = jp.module('net', net)")
        with jax.enable_x64(True):
            learner, same = self._learner(weights, args, kwargs, rng_key)
            data = learner.data(weights, args, kwargs)
            now = self._interrupted.pop(same, None) or self._start(learner, weights, data, rng_key)
            bar = tqdm(total=num_steps, initial=now.step, desc="EM", unit="step",
                       disable=not self.progress)
            try:
                while now.step < num_steps:
                    now = self._advance(learner, now, data, rng_key)
                    bar.update()
                    bar.set_postfix_str(f"F={now.free_energy[-1]:.6g} +- {now.noise[-1]:.2g}",
                                        refresh=False)
                    self._save(now, rng_key)
            except KeyboardInterrupt:
                self._interrupted[same] = now
                raise
            finally:
                bar.close()
            return self._finish(learner, now, data, rng_key)

    # -- one run -------------------------------------------------------------------------------

    def _learner(self, weights: Weights, args: tuple, kwargs: dict, rng_key: Array
                 ) -> tuple[_Learner, Any]:
        """The compiled model, and what tells this run from others."""
        call = split_call(self.model, args, kwargs)
        if call.key not in self._learners:
            self._learners[call.key] = _Learner(self, weights, args, kwargs)
        seed = np.asarray(random.key_data(rng_key)).tobytes()
        return self._learners[call.key], (call.key, tuple(map(id, call.dynamic)), seed)

    def _start(self, learner: _Learner, weights: Weights, data: Data, rng_key: Array) -> Progress:
        moments = learner.begin(data.whole.dynamic, random.fold_in(rng_key, 0))
        fresh = Progress(weights, self.optim.init(weights), moments, np.zeros(0), np.zeros(0), 0)
        if self.checkpoint is None or not os.path.exists(self.checkpoint):
            return fresh
        from jopa_ppl.checkpoints import load_checkpoint
        step = load_checkpoint(self.checkpoint, self.model).step
        like = fresh._replace(free_energy=np.zeros(step), noise=np.zeros(step))
        found = load_checkpoint(self.checkpoint, self.model, weights=weights,
                                extra=_rest(like))
        return Progress(found.weights, **found.extra, step=step)

    def _save(self, now: Progress, rng_key: Array) -> None:
        if self.checkpoint is not None:
            from jopa_ppl.checkpoints import save_checkpoint
            save_checkpoint(self.checkpoint, weights=now.weights, model=self.model, step=now.step,
                            rng_key=rng_key, extra=_rest(now))

    def _advance(self, learner: _Learner, now: Progress, data: Data, rng_key: Array) -> Progress:
        now = self._expect(learner, now, data, rng_key)[1]
        key = random.fold_in(random.fold_in(rng_key, 2), now.step)
        weights, optimiser = learner.m_step(data.batch.dynamic, now.weights, now.optimiser,
                                            now.moments, key)
        return now._replace(weights=weights, optimiser=optimiser, step=now.step + 1)

    def _expect(self, learner: _Learner, now: Progress, data: Data, rng_key: Array
                ) -> tuple[Bound, Progress]:
        key = random.fold_in(random.fold_in(rng_key, 1), now.step)
        leaves = learner.leaves(data.whole, now.weights)
        sweeps = self.e_sweeps if now.step else max(self.e_sweeps, WARM_UP)
        bound, moments, value, noise = learner.e_step(leaves, now.moments, key, sweeps)
        if now.step == 0:
            raise_if_missing(learner.full.graph, bool(bound.checks["seen"]))
        if not np.isfinite(value):
            learner.full.raise_for_data(leaves)
            raise NumericalError(
                "the free energy stopped being finite",
                found=f"a non-finite value in step {now.step + 1}", expected="finite beliefs",
                fix="lower the learning rate, or clip gradients: optax.clip_by_global_norm")
        return bound, now._replace(moments=moments,
                                   free_energy=np.append(now.free_energy, value),
                                   noise=np.append(now.noise, noise))

    def _finish(self, learner: _Learner, now: Progress, data: Data, rng_key: Array
                ) -> tuple[Posterior, Weights]:
        from jopa_ppl.posterior import Posterior

        bound, now = self._expect(learner, now, data, rng_key)
        _, args, kwargs = data.whole.rebuild(data.whole.dynamic)
        call = split_call(WithWeights(self.model, now.weights), args, kwargs)
        state = State(now.moments, now.free_energy[-1], np.asarray(len(now.free_energy)), -1, True)
        return Posterior(learner.full, call, state, bound, now.free_energy, noise=now.noise
                         ), now.weights


def _rest(now: Progress) -> dict[str, Any]:
    """What a checkpoint holds beside weights and step."""
    return {k: v for k, v in now._asdict().items() if k not in ("weights", "step")}
