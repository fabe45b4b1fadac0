"""A plan to play with: move the goal and the horizon, and watch the plan and its film strip change.

    marimo edit examples/notebook.py                      (run it from the project's root)
    marimo export html examples/notebook.py -o notebook.html

The system is the quickstart's: an arm lying on a table, turned by a torque, angle and angular
velocity observed with noise. Its program is learned once; a plan is one compiled call.
"""

import marimo

app = marimo.App(width="medium")


@app.cell
def _():
    import marimo as mo
    import numpy as np

    import jopa_ppl as jp
    from examples.quickstart import controlled_lds, simulate

    return controlled_lds, jp, mo, np, simulate


@app.cell
def _(mo):
    mo.md(
        """
        # Plan by conditioning on a goal

        An arm lies on a table. From 200 steps of random torques the program learns how it turns;
        then the **same** program is asked which torques make the goal likely.
        """
    )


@app.cell
def _(controlled_lds, jp, np, simulate):
    rng = np.random.default_rng(0)
    torques = rng.normal(size=(200, 1)).astype(np.float32)
    seen = simulate(torques, rng)[:200].astype(np.float32)
    seen[rng.random(200) < 0.1] = np.nan
    learned = jp.VMP(jp.condition(controlled_lds, {"u": torques}), progress=False).run(seen, T=200)
    return learned, seen


@app.cell
def _(jp, learned, mo, seen):
    mo.as_html(jp.plots.trajectories(
        learned, labels=["angle (rad)", "velocity"], observed=seen, dt=0.1).figure)


@app.cell
def _(mo):
    goal_angle = mo.ui.slider(-180, 180, value=120, step=5, label="goal angle (degrees)")
    horizon = mo.ui.slider(5, 40, value=25, label="horizon (steps of 0.1 s)")
    mo.hstack([goal_angle, horizon], justify="start")
    return goal_angle, horizon


@app.cell
def _(controlled_lds, goal_angle, horizon, jp, learned, np):
    # 41 steps whatever the horizon, so that no move of a slider compiles anything.
    STEPS = 41
    target = np.array([np.radians(goal_angle.value), 0.0])
    wanted = jp.sparse(STEPS, {0: np.zeros(2), horizon.value: target})
    planner = jp.VMP(jp.given(controlled_lds, learned), decide="u")
    plan = planner.run(wanted, T=STEPS)
    return STEPS, plan, target


@app.cell
def _(STEPS, horizon, jp, mo, np, plan, simulate, target):
    reached = simulate(np.asarray(plan.mean("u")))[:STEPS]
    miss = np.degrees(abs(reached[horizon.value] - target)[0])
    top = jp.plots.plan(plan, unit="N m", dt=0.1)
    top.axvline(0.1 * horizon.value, color="0.3", ls=":", lw=1)
    top.set_title("torques planned; dotted: the goal's step", fontsize=10, loc="left")
    mo.vstack([
        mo.md(f"Acting by the mean plan, the true arm ends **{miss:.2f} degrees** off the goal."),
        top.figure,
    ])
    return (reached,)


@app.cell
def _(np):
    def arm(states, size=24):
        """Frames (T, size, size) of an arm that points up at angle 0."""
        angle = np.asarray(states)[:, 0, None, None]
        grid = np.linspace(-1.15, 1.15, size)
        x, y = grid[None, None, :], -grid[None, :, None]
        along = np.clip(x * np.sin(angle) + y * np.cos(angle), 0, 1)
        off = np.hypot(x - along * np.sin(angle), y - along * np.cos(angle))
        return np.clip(1.6 - 8 * off, 0, 1)

    return (arm,)


@app.cell
def _(arm, horizon, jp, mo, np, plan, reached, target):
    shown = np.unique(np.linspace(0, horizon.value, 10).round().astype(int))
    planned = np.concatenate([plan.mean("x0")[None], plan.mean("x")])
    mo.as_html(jp.plots.film_strip({
        "planned": arm(planned), "true": arm(reached),
        "goal": np.broadcast_to(arm(target[None]), (len(reached), 24, 24)),
    }, steps=shown, dt=0.1).figure)


if __name__ == "__main__":
    app.run()
