"""Pictures of posteriors, plans, frames and programs. Every function takes and returns Axes.

    ax = jp.plots.trajectories(posterior, "x")
    jp.plots.plan(plan, "u", unit="N m", ax=axes[1])

Where a function takes a posterior it takes plain arrays too. Colours are Okabe and Ito's, which
survive colour blindness; bands are central intervals of the belief. Matplotlib is imported when a
picture is drawn, not before.

    series, spectrum, frames, programs    over time or sweeps; eigenvalues; frames; graphs
    style         colours, axes and numbers that all share

Another picture: a function in the file of its kind, with `style.axes_of` and its colours, and its
name below.
"""

from jopa_ppl.colours import COLOURS
from jopa_ppl.plots.frames import animate, film_strip, picture, reveal
from jopa_ppl.plots.programs import graph, schedule
from jopa_ppl.plots.series import free_energy, plan, trajectories
from jopa_ppl.plots.spectrum import eigenvalues

__all__ = [
    "COLOURS",
    "animate",
    "eigenvalues",
    "film_strip",
    "free_energy",
    "graph",
    "picture",
    "plan",
    "reveal",
    "schedule",
    "trajectories",
]
