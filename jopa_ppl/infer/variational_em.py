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

import hashlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array, random
from tqdm.auto import tqdm

from jopa_ppl.compilation import once
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.faults import raise_if_missing
from jopa_ppl.engine.lost_digits import raise_or_warn
from jopa_ppl.engine.rounding import Digits
from jopa_ppl.engine.signature import split_call, traced
from jopa_ppl.engine.state import State
from jopa_ppl.errors import FileError, JopaError, NumericalError, StructureError, whole
from jopa_ppl.infer.em_steps import Data, Learner, Progress
from jopa_ppl.infer.vmp import VMP
from jopa_ppl.language.keys import as_key, key_data
from jopa_ppl.language.networks import Weights, WithWeights, weights_of
from jopa_ppl.posterior.posterior import Posterior
from jopa_ppl.posterior.read import load_checkpoint
from jopa_ppl.posterior.write import save_checkpoint
from jopa_ppl.settings import ours

LIGHT = 30      # optimiser steps that do not repay what XLA would need to make them fast
WARM_UP = 30    # sweeps of the first E-step at least: it starts from the prior


class Seen(NamedTuple):
    """What an E-step leaves beside beliefs: the program with its data, and what rounding worked on
    in the last sweep."""

    bound: Evidence
    measured: Digits


class VariationalEM:
    """Learn the beliefs and the networks' weights of a program on one free energy.

    Args:
        model: a program that declares its networks with `jp.module` (`jp.condition` and `jp.given`
            wrap it).
        optim: an Optax optimiser of the weights, on the free energy in nats of all data.
        e_sweeps: sweeps of message passing a step (the first takes 30 at least, as it starts from
            the prior); m_steps: optimiser steps a step.
        batch: trajectories (elements of the states' plate) an optimiser step, drawn without
            replacement; None for all. E-steps always take all. An array c with an entry a
            trajectory that is no site's data is indexed by the plate: `with plate as i: c[i]`.
        draws: of every state, for the expected log-likelihood in an optimiser step.
        checkpoint: a file that holds the run after every step, and in the end its posterior as
            well (`jp.load_checkpoint`). A run goes on from it where it exists, also with another
            `optim` of the same state; one that has done `num_steps` already is returned as it is.
        damping, messages, blocks: as in `jp.VMP`.
        progress: show a bar with the free energy and its Monte-Carlo error.

    Raises (in `run`): what `VMP.run` raises, and
        StructureError: no network to train, or no plate to take minibatches of.
        NumericalError: training diverged; what was there before is kept.
        FileError: the checkpoint belongs to another program, other shapes, data or rng_key.
    """

    def __init__(self, model: Callable, optim: optax.GradientTransformation, *, e_sweeps: int = 1,
                 m_steps: int = 10, batch: int | None = None, draws: int = 1,
                 checkpoint: str | None = None, damping: float | None = None,
                 messages: dict[str, str] | None = None, blocks: Any = None,
                 progress: bool = True) -> None:
        whole("jp.VariationalEM", e_sweeps=e_sweeps, m_steps=m_steps, draws=draws,
              batch=1 if batch is None else batch)
        if not isinstance(optim, optax.GradientTransformation | optax.MultiSteps):
            raise JopaError("optim is not an Optax optimiser", found=type(optim).__name__,
                            expected="an optax.GradientTransformation",
                            fix="pass optax.adam(1e-3), for instance")
        VMP(model, damping=damping, messages=messages, blocks=blocks)      # refuses what is wrong
        self.model, self.optim = model, optim
        self.e_sweeps, self.m_steps, self.batch, self.draws = e_sweeps, m_steps, batch, draws
        self.checkpoint, self.damping, self.progress = checkpoint, damping, progress
        self.messages, self.blocks = messages, blocks
        self._learners: dict[Any, Learner] = {}
        self._interrupted: dict[Any, Progress] = {}

    def run(self, rng_key: Array | int, num_steps: int, *args: Any, **kwargs: Any
            ) -> tuple[Posterior, Weights]:
        """`num_steps` times an E-step and an M-step, then a last E-step.

        `rng_key` is a key or a seed; the other arguments are those of the model.

        Returns the posterior, whose `free_energy` holds F after every E-step (num_steps + 1 values
        in nats, `free_energy_noise` their standard errors by 2 draws of every state), and the
        weights by network: `jp.with_weights(model, weights)` is the trained program. It has
        `converged` where the last step changed F by no more than two standard errors. F counts the
        decoder's log p(y | x); that of `VMP.run` on a program with encoders counts their messages
        in its place, and the two cannot be compared. Both steps are compiled once; a run of few
        optimiser steps (30 in all) is compiled lightly, and anew when a longer one follows.

        After a KeyboardInterrupt (or any error), `run` with arguments of the same values goes on
        from the last step, in the same process or, with `checkpoint=`, in another one.
        """
        rng_key = as_key(rng_key)
        whole("jp.VariationalEM", 0, num_steps=num_steps)
        weights = weights_of(self.model, args, kwargs)
        if not jax.tree.leaves(weights):
            raise StructureError("the program has no network to train", found="no jp.module"
                                 + " with parameters" * bool(weights),
                                 expected="at least one network",
                                 fix="declare it inside the program: net = jp.module('net', net)")
        with ours():
            learner, same = self._learner(weights, args, kwargs, rng_key)
            data, mark, seen = learner.data(weights, args, kwargs), same[1], None
            now = (self._interrupted.get(same)
                   or self._start(learner, weights, data, rng_key, mark))
            bar = tqdm(total=num_steps, initial=now.step, desc="EM", unit="step",
                       disable=not self.progress)
            try:
                learner.compile(data, now, rng_key, light=num_steps * self.m_steps <= LIGHT)
                if not len(now.free_energy):
                    seen, now = self._expect(learner, now, data, rng_key)
                    # Told at once, not after hours of training.
                    raise_or_warn(learner.full, *self._posterior(learner, now, seen, data))
                while now.step < num_steps:
                    seen, now = self._advance(learner, now, data, rng_key)
                    bar.update()
                    bar.set_postfix_str(f"F={now.free_energy[-1]:.6g} +- {now.noise[-1]:.2g}",
                                        refresh=False)
                    self._save(now, rng_key, mark)
                found = self._finish(learner, now, seen, data, rng_key, mark)
            except BaseException:      # nothing of what was learned so far is lost
                self._interrupted[same] = now
                raise
            finally:
                bar.close()
        self._interrupted.pop(same, None)
        return found

    # -- one run -------------------------------------------------------------------------------

    def _learner(self, weights: Weights, args: tuple, kwargs: dict, rng_key: Array
                 ) -> tuple[Learner, tuple[Any, bytes]]:
        """The compiled model, and what tells this run from others: its values."""
        call = split_call(WithWeights(self.model, weights), args, kwargs)
        key = traced(call).key
        if key not in self._learners or not self._learners[key].fits(weights, args, kwargs):
            self._learners[key] = Learner(self, weights, args, kwargs)
        digest = hashlib.blake2b(digest_size=32)
        plain = [x for x in call.static if isinstance(x, bool | int | float | str)]
        digest.update(repr((plain, sorted((self.messages or {}).items()), self.blocks)).encode())
        for leaf in (*split_call(self.model, args, kwargs).dynamic, rng_key):
            digest.update(_bytes(leaf))
        return self._learners[key], (key, digest.digest())

    def _start(self, learner: Learner, weights: Weights, data: Data, rng_key: Array, mark: bytes
               ) -> Progress:
        moments = learner.begin(data.whole.dynamic, random.fold_in(rng_key, 0))
        optimiser = jax.jit(self.optim.init, compiler_options=once())(weights)
        fresh = Progress(weights, optimiser, moments, np.zeros(0), np.zeros(0), 0)
        if self.checkpoint is None or not os.path.exists(self.checkpoint):
            return fresh
        step = load_checkpoint(self.checkpoint, self.model).step
        like = fresh._replace(free_energy=np.zeros(step + 1), noise=np.zeros(step + 1))
        found = load_checkpoint(self.checkpoint, self.model, weights=weights,
                                extra=_rest(like, mark))
        if bytes(found.extra.pop("mark")) != mark:
            raise FileError("the checkpoint is of another run", found=f"'{self.checkpoint}', made "
                            "with other data, numbers or messages, or another rng_key",
                            expected="the same arguments and options",
                            fix="pass those, or name another file to start afresh")
        return Progress(found.weights, **found.extra, step=step)

    def _save(self, now: Progress, rng_key: Array, mark: bytes,
              posterior: Posterior | None = None) -> None:
        if self.checkpoint is not None:
            save_checkpoint(self.checkpoint, posterior, now.weights, model=self.model,
                            step=now.step, rng_key=rng_key, extra=_rest(now, mark))

    def _advance(self, learner: Learner, now: Progress, data: Data, rng_key: Array
                 ) -> tuple[Seen, Progress]:
        """An M-step, and the E-step that follows it."""
        key = random.fold_in(random.fold_in(rng_key, 2), now.step)
        weights, optimiser, finite = learner.m_step(data.batch.dynamic, now.weights,
                                                    now.optimiser, now.moments, key)
        if not finite:
            raise self._diverged(now.step + 1, "weights that are not finite")
        now = now._replace(weights=weights, optimiser=optimiser, step=now.step + 1)
        return self._expect(learner, now, data, rng_key)

    def _expect(self, learner: Learner, now: Progress, data: Data, rng_key: Array
                ) -> tuple[Seen, Progress]:
        key = random.fold_in(random.fold_in(rng_key, 1), now.step)
        leaves = learner.leaves(data.whole, now.weights)
        sweeps = self.e_sweeps if now.step else max(self.e_sweeps, WARM_UP)
        bound, moments, value, noise, measured = learner.e_step(leaves, now.moments, key, sweeps)
        if now.step == 0:
            raise_if_missing(learner.full.graph, bound.checks, needed=True)
        if not np.isfinite(value):
            if now.step == 0:
                learner.full.raise_for_data(leaves)
            raise self._diverged(now.step, "a free energy that is not finite")
        return Seen(bound, measured), now._replace(
            moments=moments, free_energy=np.append(now.free_energy, value),
            noise=np.append(now.noise, noise))

    def _diverged(self, step: int, found: str) -> NumericalError:
        kept = f"'{self.checkpoint}' holds" if self.checkpoint else "the next run goes on from"
        return NumericalError(
            "training diverged" if step else "the free energy is not finite",
            found=f"{found} after step {step}", expected="finite weights and beliefs",
            fix="lower the learning rate, or clip gradients: optax.clip_by_global_norm; "
            f"{kept} the step before" if step else
            "look at the scale of the data, at the priors and at what the networks return")

    def _posterior(self, learner: Learner, now: Progress, seen: Seen, data: Data
                   ) -> tuple[State, Callable[[], Posterior]]:
        """The state of the run, and what makes its posterior."""
        state = State(now.moments, now.free_energy[-1], np.asarray(len(now.free_energy)), -1,
                      _settled(now), jax.device_get(seen.measured))

        def made() -> Posterior:
            _, args, kwargs = data.whole.rebuild(data.whole.dynamic)
            call = split_call(WithWeights(self.model, now.weights), args, kwargs)
            call = call._replace(traced=learner.traced)
            return Posterior(learner.full, call, state, seen.bound, now.free_energy,
                             noise=now.noise)

        return state, made

    def _finish(self, learner: Learner, now: Progress, seen: Seen | None, data: Data,
                rng_key: Array, mark: bytes) -> tuple[Posterior, Weights]:
        if seen is None:      # nothing was left to do
            leaves = learner.leaves(data.whole, now.weights)
            bound, *_, measured = learner.e_step(leaves, now.moments, rng_key, 0)
            seen = Seen(bound, measured)
        state, made = self._posterior(learner, now, seen, data)
        posterior = made()
        self._save(now, rng_key, mark, posterior)
        raise_or_warn(learner.full, state, lambda: posterior)
        return posterior, now.weights


def _settled(now: Progress) -> bool:
    """Whether the last step changed F by no more than two standard errors (or rounding)."""
    if len(now.free_energy) < 2:
        return False
    noise = 2 * np.hypot(*now.noise[-2:]) + 1e-9 * abs(now.free_energy[-1])
    return bool(abs(now.free_energy[-1] - now.free_energy[-2]) <= noise)


def _bytes(leaf: Array) -> bytes:
    return np.asarray(key_data(leaf)).tobytes()


def _rest(now: Progress, mark: bytes) -> dict[str, Any]:
    """What a checkpoint holds beside weights and step."""
    kept = {k: v for k, v in now._asdict().items() if k not in ("weights", "step")}
    return {**kept, "mark": np.frombuffer(mark, np.uint8)}
