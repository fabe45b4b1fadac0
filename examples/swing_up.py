"""Gymnasium's Pendulum-v1 from pixels and torques alone: one program learns, imagines and acts.

    python -m examples.swing_up --seed 0

The arm is the environment's own: 2 N m at most, where gravity takes up to 5, so that it has to be
swung up. No state and no reward is used; the true angle and the rewards serve for scoring.

1. collects ten episodes of random torques, 2,000 steps;
2. learns the program of `jopa_ppl.models.swing` by variational EM: encoder, decoder and the
   polynomial dynamics of the poses on one free energy, from a VAE that only knows the principal
   components of a cover of the frames;
3. imagines: predicts held-out episodes 40 steps ahead, from 20 frames and the torques alone;
4. acts: filters, plans 30 steps with the image of the upright arm for a goal, and takes the first
   torque, in episodes of 200 steps. *held* counts those whose last 50 steps stay within 0.3 rad.

The folder --out gets summary.json: `open_loop_ratio` are errors of predicted frames 1, 5, 10, 20
and 40 steps ahead (root mean square) over those of the mean frame, `open_loop_ratio_poses` those of
poses over the mean pose's; `ms_per_control_step` is the median of an arm that is alone, on one core
of the CPU; swing_up.png: returns (against steps, where --steps has several), these errors and the
angles of all starts; imagined.gif: what happens in a held-out episode, and beside it what the
program imagines, 20 steps from 20 frames.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import trange

import jopa_ppl as jp
from examples import _arm_env as arm
from examples._arm import (
    AHEAD,
    SEEN,
    Episodes,
    collect,
    imagine,
    on_one_core,
    side_by_side,
    timed,
    write,
)
from examples._swing_up_pictures import animate, draw
from jopa_ppl.models import control
from jopa_ppl.models.control import World

EPISODES = 10          # of random torques, 200 steps each
HORIZON = 30           # steps of a plan, 1.5 s
TOGETHER = 100         # episodes that one agent acts in side by side
TIMED = 50             # control steps of one arm


def act(world: World, data: Episodes, envs: arm.Watched, starts: int, seed: int
        ) -> tuple[np.ndarray, np.ndarray, float]:
    """Episodes towards the image of the upright arm, side by side: returns (starts,), angles
    (starts, steps) in radians; and milliseconds that a control step takes of one arm alone."""
    env, copies = arm.make(), envs.num_envs
    goal, groups = arm.at_rest(env), -(-starts // copies)
    one = control.agent(world, env, HORIZON,
                        seen=data.frames.reshape(-1, *data.frames.shape[2:]))
    one.goal(goal)          # warns where nothing like it was seen: for all agents
    many = control.agent(world, envs, HORIZON)
    many.goal(goal)
    found, angles = side_by_side(many, envs, groups * copies, arm.STEPS, seed)
    frame, _ = env.reset(seed=seed)
    took = []
    with warnings.catch_warnings(), on_one_core():
        warnings.simplefilter("ignore", jp.ConvergenceWarning)
        for _ in trange(TIMED, desc="one arm", unit="step"):
            start = time.perf_counter()
            action = one.act(frame)
            took.append(time.perf_counter() - start)
            frame, *_ = env.step(action)
    env.close()
    return found.returns[:starts], angles[:starts], 1e3 * float(np.median(took))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.swing_up", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of data, training and starts (0)")
    parser.add_argument("--starts", type=int, default=100, help="episodes that are scored (100)")
    parser.add_argument("--steps", type=int, nargs="+", default=[EPISODES * arm.STEPS],
                        help="random steps that are learned from, whole episodes of 200; of "
                             f"several numbers each by itself ({EPISODES * arm.STEPS})")
    parser.add_argument("--fast", action="store_true",
                        help="a smoke test: --steps 400 --starts 2, 2 rounds of variational EM in "
                             "place of 15")
    parser.add_argument("--out", type=Path, default=Path("outputs/swing_up"),
                        help="folder of the results (outputs/swing_up)")
    args = parser.parse_args(argv)
    if args.fast:
        args.steps, args.starts = [2 * arm.STEPS], 2
    if any(n < arm.STEPS or n % arm.STEPS for n in args.steps):
        parser.error(f"--steps {args.steps}: whole episodes of {arm.STEPS} steps")
    if args.starts < 1:
        parser.error("--starts is 1 or more")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the job; returns the summary that is written to summary.json."""
    args = parse(argv)
    counts, starts = sorted({*args.steps}), args.starts
    envs = arm.Watched(-(-starts // -(-starts // TOGETHER)))
    clock: dict[str, float] = {}
    with timed(clock, "seconds_total"):
        with timed(clock, "seconds_collecting"):
            data = collect(counts[-1] // arm.STEPS, args.seed)
            held = collect(1 if args.fast else 4, args.seed + 1000)
        curve = []
        for count in counts:
            seen = Episodes(*(x[:count // arm.STEPS] for x in data))
            with timed(clock, "seconds_learning"):
                world = control.learn(*seen, arm.TORQUE, rng_key=args.seed,
                                      rounds=2 if args.fast else 15)
            with timed(clock, "seconds_imagining"):
                imagined = imagine(world, held)
            with timed(clock, "seconds_acting"):
                returns, angles, ms = act(world, seen, envs, starts, args.seed)
            up = (np.abs(angles[:, -50:]) < 0.3).all(1)
            curve.append({"environment_steps": count, "mean_return": float(returns.mean()),
                          "returns": returns.tolist(), "held": int(up.sum()),
                          **imagined.open_loop(world, seen)})
        envs.close()
        with timed(clock, "seconds_drawing"):
            args.out.mkdir(parents=True, exist_ok=True)
            draw(args.out / "swing_up.png", curve, AHEAD, angles)
            poses = imagined.poses[:SEEN, ::len(held.frames)].swapaxes(0, 1)  # of one episode
            animate(args.out / "imagined.gif", held.frames[0, SEEN:],
                    np.concatenate(np.asarray(world.vae.decode(poses))), SEEN)
    summary = {**clock, **{k: v for k, v in curve[-1].items() if k != "returns"},
               "seed": args.seed, "starts": len(up), "ms_per_control_step": ms,
               "ahead": list(AHEAD),
               "free_energy": float(world.learned.free_energy[-1]), "curve": curve}
    write(args.out, summary, ["curve"])
    return summary


if __name__ == "__main__":
    main()
