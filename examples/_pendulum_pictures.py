"""What the pendulum example leaves behind: an animation, two figures and the posterior.

Torques are in N m, distances in rad, times in s; one step is 0.05 s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from jopa_ppl.compilation import once

if TYPE_CHECKING:
    from examples.pendulum import World

DT = 0.05        # seconds a step, Gymnasium's
HELD = 0.3       # rad from the goal that count as held
ROLL = 20        # the step from which the model runs without frames
FIRST, EVERY, SHOWN = 10, 2, 13   # the frames of a strip: the first step, steps between, how many
AHEAD = 20       # predicted steps that are scored, the horizon of a plan
MOST = 80        # frames of the animation
BLUE, ORANGE, RED, GREEN = "#0072b2", "#e69f00", "#d55e00", "#009e73"  # Okabe & Ito
_STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8}


def write_all(out: Path, world: World, runs: Sequence[dict[str, Any]], goal: float,
              target: np.ndarray, predict: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Write control.gif, frames.png, free_energy.png and posterior.nc to the folder `out`.

    `predict` rolls poses (2, d) forward under torques (T, 1) by local models, (T, d).
    """
    out.mkdir(parents=True, exist_ok=True)
    farthest = max(runs, key=lambda run: run["error"][0])
    with mpl.rc_context({**_STYLE, "font.size": 7, "xtick.labelsize": 6, "ytick.labelsize": 6}):
        animate(out / "control.gif", farthest, goal, target)
    with mpl.rc_context({**_STYLE, "font.size": 9}):
        draw_frames(out / "frames.png", world, predict)
        draw_energies(out / "free_energy.png", world)
    tree = world.learned.to_arviz(
        num_samples=100, groups=("posterior", "observed_data", "constant_data"))
    tree.to_netcdf(str(out / "posterior.nc"), engine="h5netcdf")  # ArviZ 0.x and 1.x alike


def animate(path: Path, run: dict[str, Any], goal: float, target: np.ndarray) -> None:
    """The arm, what is seen of it, its distance to the goal and the torques, 480 x 320 at 20 fps.

    `frame[t]` is seen before `torque[t]` acts, `angle[t]` and `error[t]` hold after it. So the
    first picture is at step 1, the first whose angle is recorded.
    """
    angle, error, torque, sd = (np.array(run[k], float) for k in ("angle", "error", "torque", "sd"))
    steps = np.arange(1, len(torque))[:MOST]
    end = DT * (steps[-1] + 1)
    figure = Figure(figsize=(4.8, 3.2), dpi=100)
    top = figure.add_gridspec(1, 3, left=0.03, right=0.97, bottom=0.54, top=0.92, wspace=0.15)
    low = figure.add_gridspec(1, 2, left=0.085, right=0.975, bottom=0.125, top=0.435, wspace=0.27)

    arm = figure.add_subplot(top[0])
    arm.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal", xticks=[], yticks=[])
    arm.spines[["left", "bottom"]].set_visible(False)
    arm.plot(*_tip(goal), "o", color=GREEN, ms=12, mfc="none", mew=2)
    (rod,) = arm.plot([], [], color=BLUE, lw=5, solid_capstyle="round")
    arm.plot(0, 0, "o", color="0.2", ms=4)
    name = arm.set_title("", fontsize=7)
    seen = _picture(figure.add_subplot(top[1]), run["frame"][0], "frame seen")
    goals = _picture(figure.add_subplot(top[2]), target, "goal frame")
    for spine in goals.axes.spines.values():
        spine.set(color=GREEN, lw=2)

    near, push = figure.add_subplot(low[0]), figure.add_subplot(low[1])
    near.set(xlim=(0, end), ylim=(0, 3.6), xlabel="time (s)", ylabel="distance to goal (rad)",
             yticks=range(4))
    near.axhline(HELD, color="0.45", lw=0.8, ls="--", label=f"held below {HELD} rad")
    near.legend(fontsize=6, loc="upper right", frameon=False, borderaxespad=0)
    # error[t] is measured at (t + 1) DT, torque[t] acts from t DT on; the band is about the torque
    # as clipped.
    shown = [near.plot(DT * (np.arange(len(error)) + 1), error, color=RED, lw=1.3)[0]]
    time, level = DT * np.arange(len(torque) + 1), np.append(torque, torque[-1])
    spread = 2 * np.append(sd, sd[-1])
    high = 2 * max(np.abs(level).max(), 1.0)   # wider bands are cut off, or torques would not show
    push.set(xlim=(0, end), ylim=(-high, 1.35 * high), xlabel="time (s)")
    push.set_ylabel("torque (N m)", labelpad=1)
    push.axhline(0, color="0.85", lw=0.8, zorder=0)
    shown += [push.fill_between(time, level - spread, level + spread, step="post", color=ORANGE,
                                alpha=0.45, lw=0),
              push.step(time, level, where="post", color=BLUE, lw=1.2)[0]]
    note = push.legend(shown[:0:-1], ["applied", "±2 sd of its posterior"], ncols=2, fontsize=6,
                       loc="upper right", borderaxespad=0, handlelength=1.2, framealpha=1,
                       columnspacing=1, edgecolor="none")

    # What moves is drawn over the rest, which is drawn once.
    canvas, moving, frames = FigureCanvasAgg(figure), (rod, name, seen, *shown, note), []
    for artist in moving:
        artist.set_animated(True)
    canvas.draw()
    still = canvas.copy_from_bbox(figure.bbox)
    for t in steps:
        rod.set_data(*np.transpose([(0, 0), _tip(angle[t - 1])]))
        name.set_text(f"true arm (ring: goal), {DT * t:.2f} s")
        seen.set_data(np.squeeze(run["frame"][t]))
        for artist in shown:   # reveals what has happened by now
            low_y, high_y = artist.axes.get_ylim()
            artist.set_clip_path(Rectangle((0, low_y), DT * t, high_y - low_y,
                                           transform=artist.axes.transData))
        canvas.restore_region(still)
        for artist in moving:
            artist.axes.draw_artist(artist)
        frames.append(Image.fromarray(np.array(canvas.buffer_rgba())[..., :3]))
    # One palette for all, of the last picture, which shows everything: no colour flickers.
    palette = frames[-1].quantize()
    frames = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    frames[0].save(path, save_all=True, append_images=frames[1:], loop=0,
                   duration=round(1000 * DT))


def draw_frames(path: Path, world: World,
                predict: Callable[[np.ndarray, np.ndarray], np.ndarray], episode: int = 0) -> None:
    """Strips of one episode: seen, encoded and decoded, smoothed, predicted without frames."""
    true, vae = world.frames[episode], world.vae
    poses = _poses(world, episode)
    past, later = poses[1:ROLL + 2], world.torques[episode, ROLL:-1]
    local = predict(poses[ROLL:ROLL + 2], later)
    encode, decode = (jax.jit(f, compiler_options=once()) for f in (vae.encode, vae.decode))
    rows = {"true frames": true, "VAE reconstruction": decode(encode(true)[0]),
            "smoothed": decode(np.float32(poses[1:len(true) + 1])),
            "predicted, local models": decode(np.float32(np.concatenate([past, local]))),
            "predicted, one model": decode(np.float32(_roll(world, poses, episode)))}
    steps = range(FIRST, FIRST + EVERY * SHOWN, EVERY)
    scored = slice(ROLL + 1, ROLL + 1 + AHEAD)
    figure = Figure(figsize=(0.72 * len(steps) + 2.15, 4.4))
    grid = figure.subplots(5, len(steps), gridspec_kw={
        "left": 2.0 / figure.get_figwidth(), "right": 0.99, "bottom": 0.13, "top": 0.86,
        "wspace": 0.08, "hspace": 0.08})
    for row, (label, strip) in zip(grid, rows.items(), strict=True):
        strip = np.asarray(strip)
        off = np.sqrt(np.mean((strip[scored] - true[scored])**2))
        note = "" if label == "true frames" else f"\nRMSE {off:.3f}"
        row[0].text(-0.15, 0.5, label + note, transform=row[0].transAxes, ha="right", va="center")
        for ax, t in zip(row, steps, strict=True):
            if label.startswith("predicted") and t <= ROLL:
                ax.axis("off")
                continue
            _picture(ax, strip[t])
    for ax, t in zip(grid[0], steps, strict=True):
        ax.set_title(f"{t}", fontsize=9)
    shown = [ax for ax, t in zip(grid[-1], steps, strict=True) if t <= ROLL]
    if shown:
        left, right = shown[0].get_position(), shown[-1].get_position()
        above = grid[-2][0].get_position()
        figure.text((left.x0 + right.x1) / 2, (left.y0 + above.y1) / 2,
                    f"from the smoothed state at step {ROLL},\nby torques alone",
                    ha="center", va="center", color="0.3")
    figure.text(0.5, 0.95, f"step ({DT} s each)", ha="center", va="center")
    still = np.sqrt(np.mean((world.frames.mean((0, 1)) - true[scored])**2))
    figure.text(0.5, 0.05, f"RMSE: grey level in [0, 1], steps {scored.start} to {scored.stop - 1} "
                f"({still:.3f} for the mean frame); episode {episode} of the training data; local "
                "models: as in control; one model: linear for all angles",
                ha="center", va="center", color="0.3")
    figure.savefig(path, dpi=130)


def draw_energies(path: Path, world: World) -> None:
    """Free energy a sweep of message passing, how much each sweep gains, and the VAE's loss."""
    energy = np.asarray(world.learned.free_energy, float)
    losses = np.asarray(world.losses, float)
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    sweep = np.arange(1, len(energy) + 1)
    left.plot(sweep, energy / 1e3, ".-", color=BLUE, ms=4, lw=1.2)
    state = "converged" if world.learned.converged else "not converged"
    left.set(xlabel="sweep", ylabel="free energy (1000 nats)",
             title=f"message passing: {state}, {len(energy)} sweeps")
    gain = -np.diff(energy)
    fell = gain > 0
    middle.semilogy(sweep[1:][fell], gain[fell], ".-", color=BLUE, ms=4, lw=1.2)
    if not fell.all():   # only rounding may do this
        middle.semilogy(sweep[1:][~fell], np.maximum(-gain[~fell], 1e-12), "x", color=RED, ms=5,
                        label="rose")
        middle.legend(frameon=False)
    middle.set(xlabel="sweep", ylabel="fall of the free energy (nats)", title="gain of each sweep")
    width = max(1, len(losses) // 25)
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    step = np.arange(1, len(losses) + 1)
    right.plot(step, losses, color="0.75", lw=0.8, label="one batch")
    centre = step[(width - 1) // 2:][:len(smooth)]
    right.plot(centre, smooth, color=RED, lw=1.4, label=f"mean of {width} steps")
    right.set(xlabel="training step", ylabel="loss (nats a frame)", title="VAE")
    right.legend(frameon=False)
    for ax in (left, middle, right):
        ax.grid(color="0.92", lw=0.8)
        ax.set_axisbelow(True)
        ax.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=110)


def _poses(world: World, episode: int) -> np.ndarray:
    """Smoothed poses (T + 2, d) of an episode; frame t is seen at pose t + 1."""
    q = world.learned
    first = [np.asarray(q.mean(name))[episode] for name in ("x0", "x1")]
    return np.concatenate([np.stack(first), np.asarray(q.mean("x"))[:, episode]])


def _roll(world: World, poses: np.ndarray, episode: int) -> np.ndarray:
    """Poses (T, d) at the frames: smoothed up to step ROLL, then by the mean dynamics alone."""
    A, B, c = (np.asarray(world.learned.mean(name)) for name in "ABc")
    torques, path = world.torques[episode], list(poses[:ROLL + 2])
    for u in torques[ROLL:len(torques) - 1]:
        path.append(A @ np.concatenate(path[-2:]) + B @ u + c)
    return np.stack(path[1:])


def _picture(ax: Axes, frame: Any, title: str = "") -> Any:
    """A frame (H, W, 1) in grey, framed."""
    ax.set(xticks=[], yticks=[], title="")
    ax.set_title(title, fontsize=7)
    for spine in ax.spines.values():
        spine.set(visible=True, color="0.7", lw=0.8)
    return ax.imshow(np.squeeze(np.asarray(frame)), cmap="gray", vmin=0, vmax=1,
                     interpolation="nearest")


def _tip(angle: float) -> tuple[float, float]:
    """Where the arm of length 1 ends; 0 is upright, positive is anticlockwise."""
    return -float(np.sin(angle)), float(np.cos(angle))
