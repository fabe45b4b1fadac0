"""An agent made of one program: it filters what it sees, adapts, plans and acts.

    agent = jp.Agent(model, posterior, horizon=20)
    agent.reset()
    agent.goal(frame)
    action = agent.act(observation)

The program senses, acts, moves: a step observes its frame, draws its action and then the next
state. `Agent` only changes what is latent in it. At every step it

    1. filters:  two steps from the belief about the state at the last frame, the action between
                 them known, the new frame seen at the second; every `adapt` steps what is global
                 moves as well, by all of these steps, its old evidence raised to a power,
    2. plans:    `horizon` steps on from the belief about the state now, the goal seen at all of
                 them, actions latent (`jp.VMP(decide=..)`),
    3. acts:     the mean of the plan's first action.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jopa_ppl.errors import (
    ConvergenceWarning,
    DataError,
    DataWarning,
    JopaError,
    NumericalError,
    ShapeError,
    share,
    whole,
)
from jopa_ppl.infer.forgetting import Forgetting
from jopa_ppl.infer.goals import Goal
from jopa_ppl.infer.inputs import beliefs, frame_of, real, shared
from jopa_ppl.infer.unseen import Seen
from jopa_ppl.infer.vmp import VMP
from jopa_ppl.language.given import Given, given
from jopa_ppl.language.query import condition
from jopa_ppl.posterior.posterior import Posterior, later
from jopa_ppl.posterior.state import StateBelief
from jopa_ppl.settings import ours

BEGINNING = 10      # times `max_iters` policies are tried in the first plan of an episode


class Step(NamedTuple):
    """What an agent did at one step.

    action: as the environment takes it; drawn: as the program has it; state: the belief it starts
    from; ahead (horizon + 1, ..): the plan that it comes from, from this step on. Where the step's
    own plan failed (`failed`: why, or None) that is the last good one, `late` steps old, of copies
    by themselves: (copies,). Of its own plan: whether it `converged`, and the `start` that it came
    from (`Posterior.start`). lost: why its frame was taken for lost, or None.
    """

    action: np.ndarray
    drawn: np.ndarray
    state: StateBelief
    ahead: np.ndarray
    late: np.ndarray
    failed: str | None
    converged: bool
    start: Any
    lost: str | None = None


class Agent:
    """Acts in an environment by the beliefs of one program.

    Args:
        model: a program `model(y, *, T, ..)` that observes y (T, ..) in a scan of T steps and draws
            its actions there (jp.condition and jp.given wrap it): sense, act, move. Its first
            states are the values of its sites before step 0.
        posterior: beliefs about what is outside the scan, from `jp.VMP` or `jp.VariationalEM` on
            recorded data; or distributions by site name.
        horizon: steps that are planned.
        decide: the site of the actions, which has one axis.
        space: the environment's action space, a Gymnasium Box: actions are cut to it, and what was
            cut is what the program is told. None: `jp.rollout` cuts them to the environment's,
            `act` alone to nothing.
        to_action: what the environment takes for what the program draws, `lambda u: 2 *
            np.tanh(u)` say; to_frame: what the program observes of an observation or a goal.
        seeing: keyword arguments of the program when it filters; planning: when it plans (the
            weight of a goal, say); arguments: both times.
        adapt: after how many steps global beliefs move, by these steps smoothed together from the
            belief that they began with; 0: never. Where frames are noisier than what moves the
            state, states and parameters are told apart by several steps only.
        forget: power in (0, 1] to which the old evidence about them is raised for every step: about
            the last 1 / (1 - forget) of them count. Where the noise of the process is unknown
            too, a change is taken for noise at first, and takes several times as long to be
            followed: `jp.condition(model, {"W": learned.mean("W")})` keeps it as it was.
        copies: of an environment that one agent acts in side by side, each with a state of its own:
            the program has a plate of them, y is (T, copies, ..).
        seen: observations (N, ..) that the beliefs were learned from: goals unlike all of them are
            warned of.
        max_iters: policies tried at most in a plan that is not affine, which begins with the last
            one, a step on; ten times as many in the first one of an episode.
        messages, tol: as in `jp.VMP`.

    Raises (in `act`): what `VMP.run` raises of the first frame and plan. Later plans that fail
    leave the last good one in force, a step on, and `steps[-1].failed` says why; a later frame that
    cannot be (infinite, or where no state is) is taken for lost with a DataWarning, and
    `steps[-1].lost` says why.
    """

    def __init__(self, model: Callable, posterior: Posterior | Mapping[str, Any], *, horizon: int,
                 decide: str = "u", space: Any = None,
                 to_action: Callable[[np.ndarray], np.ndarray] | None = None,
                 to_frame: Callable[[Any], np.ndarray] | None = None,
                 arguments: Mapping[str, Any] | None = None,
                 seeing: Mapping[str, Any] | None = None,
                 planning: Mapping[str, Any] | None = None, adapt: int = 0,
                 forget: float = 1.0, copies: int | None = None, seen: Any = None,
                 max_iters: int = 5, tol: float = 1e-3,
                 messages: Mapping[str, str] | None = None) -> None:
        whole("jp.Agent", horizon=horizon, max_iters=max_iters, copies=copies or 1)
        whole("jp.Agent", 0, adapt=adapt)
        share("jp.Agent", forget=forget)
        beliefs(posterior)
        if forget < 1 and not adapt:
            raise JopaError("forget= is of beliefs that adapt", found=f"forget={forget}",
                            expected="adapt= beside it", fix="pass adapt=8, say")
        self.model, self.horizon, self.decide = model, int(horizon), decide
        self.space = None if space is None else real(space)
        self.to_action, self.to_frame = to_action, to_frame
        self.arguments = dict(arguments or {})
        self.seeing, self.planning = dict(seeing or {}), dict(planning or {})
        self.adapt, self.forget, self.copies = int(adapt), float(forget), copies
        self.seen = None if seen is None else Seen.of(
            seen if to_frame is None else np.stack([to_frame(x) for x in seen]))
        self.max_iters, self.tol, self.messages = int(max_iters), float(tol), messages
        self.learned = self._first = posterior
        self._made: dict[bool, tuple[Any, Callable]] = {}
        self._goal: Goal | None = None
        self._shape: tuple[int, ...] | None = None
        self._shared: list[str] = []
        self.reset()

    def reset(self, *, beliefs: bool = False) -> None:
        """Begin an episode: nothing is known of the state. `beliefs`: what was learned on the way
        is put back too."""
        self.state: StateBelief | None = None
        self.plan: Posterior | None = None          # the last good one
        self.steps: list[Step] = []
        self.frames: list[np.ndarray] = []
        if beliefs:
            self.learned = self._first
        self._before = self.learned                 # this episode

    def goal(self, observation: Any, *, each: bool = False) -> None:
        """What is to be seen from now on: an observation, or one for each of `horizon` steps; of
        `copies` the same for all, or with `each` one for each of them, (copies, ..).

        Warns with a DataWarning where it is unlike all that has been seen (`seen`).

        Raises:
            DataError: it is NaN alone. ShapeError: with `each`, there are not as many as copies.
        """
        seen = self.to_frame or (lambda x: x)
        if each and len(observation) != (self.copies or 0):
            raise ShapeError("each=True is one goal for each copy", found=len(observation),
                             expected=f"{self.copies or 'no'} copies",
                             fix="leave each out: one goal for all")
        found = np.stack([seen(x) for x in observation]) if each else np.asarray(seen(observation))
        goal = Goal.of(found, each)
        if self._shape is not None:
            goal.course(self.horizon, np.zeros(self._shape), self.copies)
        if self.seen is not None:
            self.seen.compare(found if found.ndim > len(self.seen.shape) else found[None])
        self._goal = goal

    def act(self, observation: Any = None, lost: np.ndarray | None = None) -> np.ndarray:
        """The action for what is seen now; None or NaN: the frame is lost; `lost`: of which
        copies it is."""
        if self._goal is None:
            raise DataError("there is no goal", found="nothing that is to be seen",
                            expected="an observation", fix="agent.goal(observation)")
        frame = frame_of(observation, self.to_frame, self.copies, self._shape)
        if lost is not None:
            frame = np.where(np.reshape(lost, (-1, *(1,) * (frame.ndim - 1))), np.nan, frame
                             ).astype(frame.dtype)
        frame, self.state, lost_for = self._filtered(frame)
        self._shape = frame.shape
        plan, failed = self._planned(frame)
        ahead, late = self._ahead(plan, failed)
        self.plan = plan if failed is None else self.plan
        drawn = ahead[0]
        action = drawn if self.to_action is None else np.asarray(self.to_action(drawn))
        if self.space is not None:
            one = action.shape if self.copies is None else action.shape[1:]
            if self.space.shape not in (action.shape, one):
                raise ShapeError("actions do not fit the action space", site=self.decide,
                                 found=action.shape, expected=self.space.shape,
                                 fix=f"give '{self.decide}' one axis: dist.Normal(0.0, 1.0)"
                                     ".expand((1,)).to_event(1)" if one == () else
                                     "pass space= of one environment to an agent of one, that of "
                                     "all copies beside copies=; or to_action=")
            action = np.clip(action, self.space.low, self.space.high).astype(self.space.dtype)
            drawn = np.asarray(action, float) if self.to_action is None else drawn
        self.frames.append(frame)
        why, start = failed and str(failed), None if plan is None else plan.start
        self.steps.append(Step(action, drawn, self.state, ahead, late, why,
                               failed is None and bool(plan.converged), start, lost_for))
        return action

    def learn(self) -> Posterior | Mapping[str, Any]:
        """Beliefs from this episode so far as a whole, smoothed, with those from before it as its
        prior: what a filter moves step by step, with what it does not know of later frames. Frames
        count once, however often it is called, and whatever `adapt` has made of them.

        Raises:
            DataError: there are fewer than two steps. JopaError: nothing is latent that could be
                learned. As `jp.VMP.run`.
        """
        if len(self.frames) < 2:
            raise DataError("nothing to learn from", found=f"{len(self.frames)} steps",
                            expected="two steps or more", fix="act first")
        self._can_learn("learn()")
        actions = np.stack([s.drawn for s in self.steps])
        model = condition(self._about(self._before, update=True), {self.decide: actions})
        self.learned = self._vmp(model).run(np.stack(self.frames), T=len(actions),
                                            **self.arguments, **self.seeing)
        self._anchor = len(self.frames) - 1, self.steps[-1].state      # adapt= goes on from here
        return self.learned

    # -- the runs ----------------------------------------------------------------------------------

    def _filtered(self, frame: np.ndarray) -> tuple[np.ndarray, StateBelief, str | None]:
        """The belief about the state at a frame; of one that cannot be without it, and why."""
        try:
            return frame, self._seen(frame), None
        except (DataError, NumericalError) as error:
            if not self.steps:
                raise
            warnings.warn(f"a frame is taken for lost: {error}", DataWarning, stacklevel=3)
            lost = np.full_like(frame, np.nan)
            return lost, self._seen(lost), str(error)

    def _can_learn(self, what: str) -> None:
        """Refuse to learn where nothing outside the scan is latent."""
        if not self._shared:
            raise JopaError(f"{what} moves beliefs about what all steps share", found="no latent "
                            "outside the scan but first states", expected="one that is latent",
                            fix="pass beliefs, jp.Agent(model, posterior, ..), in place of "
                                "jp.condition(model, ..)")

    def _about(self, learned: Posterior | Mapping[str, Any], update: bool = False) -> Callable:
        """The program with beliefs about what is outside the scan, first states left out."""
        made, about = self._made.get(update, (None, None))
        if made is not learned:
            sites = None
            if not isinstance(learned, Mapping):
                sites = shared(learned)
            about = self.model if sites == [] else given(self.model, learned, sites, update=update)
            self._made[update] = learned, about
        return about

    def _seen(self, frame: np.ndarray) -> StateBelief:
        """The belief about the state at this frame."""
        at = len(self.frames)
        if not self.steps:
            lost = np.full(frame.shape, np.nan, frame.dtype)
            found = self._run(self._about(self.learned), np.stack([frame, lost]))
            self._shared = shared(found)
            if self.adapt:
                self._can_learn("adapt=")
            self._anchor = 0, found.state_at(0)
            return self._anchor[1]
        begun, state = self._anchor
        moves = bool(self.adapt) and at - begun == self.adapt
        if not moves:
            begun, state = at - 1, self.steps[-1].state
        drawn = [s.drawn for s in self.steps[begun:]]
        frames = [np.full_like(frame, np.nan), *self.frames[begun + 1:], frame]
        model = self._about(self.learned, moves)
        if moves and self.forget < 1 and isinstance(model, Given):
            power = np.asarray(self.forget**self.adapt)
            model = Forgetting(model, power, frozenset(model.sites))
        model = condition(given(model, state, update=True),
                          {self.decide: np.stack([*drawn, np.full_like(drawn[0], np.nan)])})
        found = self._run(model, np.stack(frames))
        now = found.state_at(-1)
        if moves:
            self.learned, self._anchor = found, (at, now)
        return now

    def _run(self, model: Callable, window: np.ndarray) -> Posterior:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            if np.isnan(window).all():           # nothing is learned from what is not seen
                warnings.simplefilter("ignore", DataWarning)
            return self._vmp(model).run(window, T=len(window), **self.arguments, **self.seeing)

    def _ahead(self, plan: Posterior | None, failed: NumericalError | None
               ) -> tuple[np.ndarray, np.ndarray]:
        """The actions from now on, and how many steps ago they were planned."""
        none = np.zeros((() if self.copies is None else self.copies), int)
        if failed is None:
            return self._actions(plan), none
        last = self.steps[-1]
        ahead, late = later(last.ahead, 1), last.late + 1
        if self.copies is not None and plan is not None and plan.plan is not None:
            good = np.isfinite(np.asarray(plan.plan.cost).reshape(self.copies))
            good &= ~good.all()         # where no copy stands out it is wrong as a whole
            ahead = np.where(good[:, None], self._actions(plan), ahead)
            late = np.where(good, 0, late)
        return ahead, late

    def _actions(self, plan: Posterior) -> np.ndarray:
        with ours():                    # no digit is lost to the caller's default
            return np.asarray(plan.mean(self.decide))

    def _planned(self, frame: np.ndarray) -> tuple[Posterior | None, NumericalError | None]:
        """A plan from the belief about the state now, and what is wrong with it: then not all of
        its copies are, or there is none."""
        wide = self._goal.course(self.horizon, frame, self.copies)
        window = np.concatenate([np.full((1, *frame.shape), np.nan, frame.dtype), wide])
        model = given(self._about(self.learned), self.state, update=True)
        vmp = self._vmp(model, decide=self.decide, max_iters=self.max_iters, tol=self.tol)
        init = None
        if self.plan is not None and self.plan.start is not None:
            init = {self.decide: later(self.steps[-1].ahead, 1)}
        plan, tries = None, 1 if self.steps else BEGINNING
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                while tries and (plan is None or not plan.converged):
                    init = init if plan is None else plan.shifted(0)
                    plan = vmp.run(window, T=self.horizon + 1, init=init, **self.arguments,
                                   **self.planning)
                    tries -= 1
        except NumericalError as error:
            if not self.steps:
                raise
            return error.posterior, error
        return plan, None

    def _vmp(self, model: Callable, **options: Any) -> VMP:
        return VMP(model, progress=False, messages=self.messages, **options)
