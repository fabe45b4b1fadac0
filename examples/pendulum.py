"""A pendulum of 10 N m from pixels and torques alone: learn, imagine, act, towards any goal.

    python -m examples.pendulum --goal 0 1.5708 --seed 0

The arm is that of Gymnasium's Pendulum-v1 with a stronger motor: up to 10 N m in place of the 2 it
ships with (`examples.swing_up` has that one). Gravity takes up to 5, so that this arm can be lifted
to any angle, and held there. The program is the same, `jopa_ppl.models.swing`, and so is the agent:

1. collects episodes of random torques, 200 steps each;
2. learns encoder, decoder and the polynomial dynamics of the poses on one free energy, by
   variational EM;
3. acts: filters the last frames and plans a second ahead with the image of the arm at rest at its
   goal, all starts and goals side by side, each for itself;
4. writes to the folder --out: control.gif (the start farthest from the first goal), frames.png
   (what it sees and what it imagines of an episode that it has not learned from), free_energy.png,
   posterior.nc (for ArviZ) and summary.json.

No state and no reward is used; the true angle serves for scoring only. From --starts of
`env.reset()` for every goal, over 80 steps of 0.05 s, *reach* counts the runs that come within
0.15 rad of the goal, *hold* those whose last 20 steps all stay within 0.3 rad of it.
`open_loop_ratio`: errors of frames predicted `ahead` steps on, over those of the mean frame, in an
episode held out; `open_loop_ratio_poses`: of poses, over those of the mean pose.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples import _arm_env as arm
from examples import _pendulum_pictures as pictures
from examples._arm import AHEAD, collect, imagine, side_by_side, timed, write
from jopa_ppl.models import control
from jopa_ppl.models.control import World

TORQUE = 10.0          # N m
EPISODES = 10          # of random torques, 2,000 steps in all
HORIZON = 20           # steps of a plan, 1 s: a strong arm is there in less
STEPS = 80             # steps of control, 4 s
POLICIES = 5           # tried at most in a plan: with the 2 of the swing-up, plans from several
                       # beginnings have not settled, and where a goal takes a torque all the time
                       # the arm goes to and fro between them


def steer(world: World, envs: arm.Watched, goals: Sequence[float], seed: int
          ) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Control to every goal from as many starts, all side by side: how it went, goal by goal; and
    the run to the first goal that had the longest way (`frames`, `torques`, `angles`, `errors` by
    step, and the `goal`'s picture)."""
    starts, one = envs.num_envs // len(goals), arm.make(TORQUE)
    wanted = np.repeat(goals, starts)
    driver = control.agent(world, envs, HORIZON, max_iters=POLICIES)
    pictured = np.stack([arm.at_rest(one, g) for g in goals]).repeat(starts, 0)
    driver.goal(pictured, each=True)
    found, angles = side_by_side(driver, envs, len(wanted), STEPS, seed)
    one.close()
    errors = np.abs(arm.wrap(angles - wanted[:, None]))
    far = int(np.argmax(errors[:starts, 0]))
    run = {"frames": found.frames[far], "torques": found.actions[far, :, 0], "angles": angles[far],
           "errors": errors[far], "goal": pictured[far]}
    return [judge(g, errors[wanted == g]) for g in goals], run


def judge(goal: float, errors: np.ndarray) -> dict[str, Any]:
    """How runs towards one goal went: errors (starts, steps), rad."""
    return {"goal": goal, "reach": int((errors.min(1) < 0.15).sum()),
            "hold": int((errors[:, -20:].max(1) < 0.3).sum()), "starts": len(errors),
            "median_final_error": float(np.median(errors[:, -1])),
            "largest_final_error": float(errors[:, -1].max())}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.pendulum", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of data, training and starts (0)")
    parser.add_argument("--goal", type=float, nargs="+", default=[0.0], metavar="RAD",
                        help="angles to reach and hold, 0 is upright and positive is "
                             "anticlockwise; several share one training (0)")
    parser.add_argument("--starts", type=int, default=20, help="runs for each goal (20)")
    parser.add_argument("--episodes", type=int, default=EPISODES,
                        help=f"of 200 random steps each ({EPISODES})")
    parser.add_argument("--fast", action="store_true",
                        help="a smoke test: 1 start, 5 episodes, 8 rounds of variational EM in "
                             "place of 15")
    parser.add_argument("--out", type=Path, default=Path("outputs/pendulum"),
                        help="folder of the results (outputs/pendulum)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the job; returns the summary that is written to summary.json.

    Its top level is about the first goal; with several, "goals" lists all of them.
    """
    args = parse(argv)
    args.goal = [*dict.fromkeys(args.goal)]
    starts, episodes, rounds = (1, 5, 8) if args.fast else (args.starts, args.episodes, 15)
    envs = arm.Watched(starts * len(args.goal), TORQUE)
    clock: dict[str, float] = {}
    with timed(clock, "seconds_total"):
        with timed(clock, "seconds_collecting"):
            data, held = (collect(n, args.seed + first, TORQUE) for n, first in
                          ((episodes, 0), (1, 1000)))
        with timed(clock, "seconds_learning"):
            world = control.learn(*data, TORQUE, rng_key=args.seed, rounds=rounds)
        with timed(clock, "seconds_acting"):
            results, run = steer(world, envs, args.goal, args.seed)
        envs.close()
        imagined = imagine(world, held)
        pictures.write_all(args.out, world, held, imagined.poses[:, 0], run, args.goal[0])
    extra = {"goals": results} if len(results) > 1 else {}
    summary = {**clock, **results[0], "seed": args.seed, "max_torque": TORQUE,
               "environment_steps": episodes * arm.STEPS, "ahead": list(AHEAD),
               **imagined.open_loop(world, data), **extra}
    write(args.out, summary)
    return summary


if __name__ == "__main__":
    main()
