"""What the pendulum example leaves behind: an animation, two figures and the posterior.

Torques are in N m, distances in rad, times in s; one step is 0.05 s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from examples._arm import AHEAD, SEEN, Episodes
from jopa_ppl.models.control import World, encode

DT = 0.05        # seconds a step, Gymnasium's
HELD = 0.3       # rad from the goal that count as held
FIRST, EVERY, SHOWN = 10, 2, 13   # the frames of a strip: the first step, steps between, how many
MOST = 80        # frames of the animation
BLUE, RED, GREEN = "#0072b2", "#d55e00", "#009e73"  # Okabe & Ito
_STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8}


def write_all(out: Path, world: World, held: Episodes, imagined: np.ndarray, run: dict[str, Any],
              goal: float) -> None:
    """Write control.gif (of a `run`), frames.png (of an episode `held` out and the poses that were
    `imagined` of it), free_energy.png and posterior.nc to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({**_STYLE, "font.size": 7, "xtick.labelsize": 6, "ytick.labelsize": 6}):
        animate(out / "control.gif", run, goal)
    with mpl.rc_context({**_STYLE, "font.size": 9}):
        draw_frames(out / "frames.png", world, held, imagined)
        draw_energies(out / "free_energy.png", world)
    tree = world.learned.to_arviz(
        num_samples=100, groups=("posterior", "observed_data", "constant_data"))
    tree.to_netcdf(str(out / "posterior.nc"), engine="h5netcdf")  # ArviZ 0.x and 1.x alike


def animate(path: Path, run: dict[str, Any], goal: float) -> None:
    """The arm, what is seen of it, its distance to the goal and the torques, 480 x 320 at 20 fps.

    `frames[t]` is seen at `angles[t]`, `errors[t]` off, and then `torques[t]` acts.
    """
    angle, error, torque = (np.array(run[k], float) for k in ("angles", "errors", "torques"))
    steps = np.arange(len(torque))[:MOST]
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
    seen = _picture(figure.add_subplot(top[1]), run["frames"][0], "frame seen")
    goals = _picture(figure.add_subplot(top[2]), run["goal"], "goal frame")
    for spine in goals.axes.spines.values():
        spine.set(color=GREEN, lw=2)

    near, push = figure.add_subplot(low[0]), figure.add_subplot(low[1])
    near.set(xlim=(0, end), ylim=(0, 3.6), xlabel="time (s)", ylabel="distance to goal (rad)",
             yticks=range(4))
    near.axhline(HELD, color="0.45", lw=0.8, ls="--", label=f"held below {HELD} rad")
    near.legend(fontsize=6, loc="upper right", frameon=False, borderaxespad=0)
    shown = [near.plot(DT * np.arange(len(error)), error, color=RED, lw=1.3)[0]]
    time, level = DT * np.arange(len(torque) + 1), np.append(torque, torque[-1])
    high = 1.2 * max(np.abs(level).max(), 1.0)
    push.set(xlim=(0, end), ylim=(-high, high), xlabel="time (s)")
    push.set_ylabel("torque (N m)", labelpad=1)
    push.axhline(0, color="0.85", lw=0.8, zorder=0)
    shown += [push.step(time, level, where="post", color=BLUE, lw=1.2)[0]]

    # What moves is drawn over the rest, which is drawn once.
    canvas, moving, frames = FigureCanvasAgg(figure), (rod, name, seen, *shown), []
    for artist in moving:
        artist.set_animated(True)
    canvas.draw()
    still = canvas.copy_from_bbox(figure.bbox)
    for t in steps:
        rod.set_data(*np.transpose([(0, 0), _tip(angle[t])]))
        name.set_text(f"true arm (ring: goal), {DT * t:.2f} s")
        seen.set_data(np.squeeze(run["frames"][t]))
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


def draw_frames(path: Path, world: World, held: Episodes, imagined: np.ndarray) -> None:
    """Strips of an episode: seen, encoded and decoded, and what is `imagined` of it, poses (T, d),
    from SEEN frames and the torques alone."""
    length, vae = SEEN + max(AHEAD), world.vae
    true = held.frames[0, :length]
    decode = jax.jit(vae.decode)
    blank = np.full_like(true[:SEEN], np.nan)
    rows = {"true frames": true, "reconstruction": decode(encode(vae, true)),
            "imagined": np.concatenate([blank, decode(np.float32(imagined))])}
    steps = range(FIRST, FIRST + EVERY * SHOWN, EVERY)
    scored = slice(SEEN, SEEN + AHEAD[2])
    figure = Figure(figsize=(0.72 * len(steps) + 2.15, 3.0))
    grid = figure.subplots(len(rows), len(steps), gridspec_kw={
        "left": 2.0 / figure.get_figwidth(), "right": 0.99, "bottom": 0.16, "top": 0.82,
        "wspace": 0.08, "hspace": 0.08})
    for row, (label, strip) in zip(grid, rows.items(), strict=True):
        strip = np.asarray(strip)
        off = np.sqrt(np.mean((strip[scored] - true[scored])**2))
        note = "" if label == "true frames" else f"\nRMSE {off:.3f}"
        row[0].text(-0.15, 0.5, label + note, transform=row[0].transAxes, ha="right", va="center")
        for ax, t in zip(row, steps, strict=True):
            if np.isnan(strip[t]).any():
                ax.axis("off")
            else:
                _picture(ax, strip[t])
    for ax, t in zip(grid[0], steps, strict=True):
        ax.set_title(f"{t}", fontsize=9)
    figure.text(0.5, 0.94, f"step ({DT} s each)", ha="center", va="center")
    still = np.sqrt(np.mean((held.frames.mean((0, 1)) - true[scored])**2))
    figure.text(0.5, 0.06, f"RMSE: grey level in [0, 1], steps {scored.start} to {scored.stop - 1} "
                f"({still:.3f} for the mean frame); an episode that nothing was learned from; "
                f"imagined: from {SEEN} frames, then by the torques alone",
                ha="center", va="center", color="0.3")
    figure.savefig(path, dpi=130)


def draw_energies(path: Path, world: World) -> None:
    """Free energy a round of variational EM, and how much each round gains."""
    learned = world.learned
    energy, noise = np.asarray(learned.free_energy), np.asarray(learned.free_energy_noise)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rounds = np.arange(len(energy))
    left.errorbar(rounds, energy / 1e3, 2 * noise / 1e3, fmt=".-", color=BLUE, ms=4, lw=1.2)
    left.set(xlabel="round", ylabel="free energy (1000 nats)", title="variational EM")
    gain = -np.diff(energy)
    fell = gain > 0
    right.semilogy(rounds[1:][fell], gain[fell], ".-", color=BLUE, ms=4, lw=1.2, label="fell")
    if not fell.all():        # near the end its own noise may do this
        right.semilogy(rounds[1:][~fell], -gain[~fell], "x", color=RED, ms=5, label="rose")
    right.set(xlabel="round", ylabel="change of the free energy (nats)", title="gain of each round")
    right.legend(frameon=False)
    for ax in (left, right):
        ax.grid(color="0.92", lw=0.8)
        ax.set_axisbelow(True)
        ax.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=110)


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
