"""Pictures show the numbers of the belief, and are drawn without side effects."""

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from posterior.test_files import D, T, lds, learned, series  # noqa: F401
from programs import cases
from scipy.stats import norm

import jopa_ppl as jp
from jopa_ppl import plots


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def lines(ax):
    """{label: (x, y)} of what is in the legend."""
    return {a.get_label(): a.get_data() for a in ax.lines if not a.get_label().startswith("_")}


def edges(band):
    """Lower and upper edge of a band at the first abscissa."""
    points = band.get_paths()[0].vertices
    return np.sort(np.unique(points[points[:, 0] == points[0, 0], 1]))[[0, -1]]


def decode(x):
    """Frames (T, 2, 3) whose first row repeats element 0."""
    return np.stack([np.repeat(x[:, :1], 3, 1), np.zeros((len(x), 3))], 1)


def test_importing_draws_nothing():
    code = "import sys, jopa_ppl; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_trajectories_start_at_the_first_state_and_carry_their_band(learned):  # noqa: F811
    y = series()[0]
    ax = plots.trajectories(learned, "x", labels=["a", "b"], observed=y, level=0.5, dt=0.1)
    drawn = lines(ax)
    states = np.concatenate([learned.mean("x0")[None], learned.mean("x")])
    for i, name in enumerate("ab"):
        np.testing.assert_allclose(drawn[name][0], 0.1 * np.arange(T + 1))
        np.testing.assert_allclose(drawn[name][1], states[:, i], rtol=1e-6)
    half = norm.ppf(0.75) * np.sqrt(learned.variance("x0")[0])
    np.testing.assert_allclose(edges(ax.collections[0]), states[0, 0] + np.array([-half, half]),
                               rtol=1e-4)
    dots = next(a for a in ax.lines if a.get_marker() == "o" and len(a.get_xdata()))
    np.testing.assert_allclose(dots.get_ydata(), y[:, 0])
    assert ax.get_xlabel() == "time (s)" and "predicted" in ax.get_legend_handles_labels()[1]
    assert plots.trajectories(np.zeros((5, 2)), ax=ax) is ax
    with pytest.raises(jp.ShapeError, match="outside scans"):
        plots.trajectories(learned, "A")
    with pytest.raises(jp.ShapeError, match="index="):
        plots.trajectories(np.zeros((5, 2, 3)))
    with pytest.raises(jp.JopaError, match="level"):
        plots.trajectories(learned, level=90)


def test_the_data_of_the_chosen_trajectory_are_drawn():
    """Data of all trajectories, of the chosen one, of scalar states; nothing else."""
    rng = np.random.default_rng(0)
    mean, y = rng.normal(size=(5, 3, 2)), rng.normal(size=(5, 3, 2))

    def dots(ax):
        return np.stack([a.get_ydata() for a in ax.lines
                         if a.get_marker() == "o" and len(a.get_xdata())], 1)

    for data in (y, y[:, 1], y[..., :1], y[:, 1, 0]):
        drawn = dots(plots.trajectories(mean, variance=mean**2, index=1, observed=data))
        np.testing.assert_array_equal(drawn, y[:, 1, :drawn.shape[1]])
    level = plots.trajectories(mean[..., 0], index=2, observed=y[..., 0])
    np.testing.assert_array_equal(dots(level), y[:, 2, :1])
    rooms = np.moveaxis(np.stack([y, y + 9]), 0, 1)                   # (5, 2, 3, 2): two plates
    drawn = dots(plots.trajectories(rooms, index=(1, 2), observed=rooms))
    np.testing.assert_array_equal(drawn, y[:, 2] + 9)
    for data, index in ((y, None), (y[:, :, None], 1), (np.zeros((5, 7)), 1)):
        with pytest.raises(jp.ShapeError):
            plots.trajectories(mean if index else mean[:, 0], index=index, observed=data)


def test_second_order_states_start_two_steps_earlier():
    case = cases(8)["second order"]
    q = jp.VMP(case.model, tol=1e-3).run(*case.args, **case.kwargs)
    steps, y = lines(plots.trajectories(q, "q"))["q[0]"]
    np.testing.assert_array_equal(steps, np.arange(-1, 9))       # q1, q0, then q[0] .. q[7]
    np.testing.assert_allclose(y[:3], [q.mean("q1")[0], q.mean("q0")[0], q.mean("q")[0, 0]],
                               rtol=1e-6)


def test_plans_hold_each_action_for_its_step(learned):  # noqa: F811
    goal = jp.sparse(T, {0: np.zeros(D), -1: np.ones(D)})
    plan = jp.VMP(jp.given(lds, learned), decide="u").run(goal, length=T)
    ax = plots.plan(plan, "u", unit="N", limit=2.0)
    steps, y = lines(ax)["u"]
    np.testing.assert_array_equal(steps, np.arange(T + 1))
    np.testing.assert_allclose(y[:-1], plan.mean("u")[:, 0], rtol=1e-6)
    half = norm.ppf(0.95) * np.sqrt(plan.variance("u")[0, 0])
    np.testing.assert_allclose(np.diff(edges(ax.collections[0])), 2 * half, rtol=1e-4)
    assert ax.get_ylabel() == "action (N)"
    plots.plan(np.zeros((T, 1)), label="still", ax=ax)
    assert ax.lines[-2].get_color() != ax.lines[0].get_color()


def test_free_energy(learned):  # noqa: F811
    drawn = plots.free_energy(learned)
    np.testing.assert_array_equal(drawn.lines[0].get_ydata(), learned.free_energy)
    assert "converged" in drawn.get_title(loc="left") and "nats" in drawn.get_ylabel()
    rising = lines(plots.free_energy({"a": [5.0, 3.0, 4.0, 2.0]}, above_end=True))
    np.testing.assert_array_equal(rising["a"][1], [3, 1, 2])
    np.testing.assert_array_equal(rising["rose"], [[3], [2]])


FIGURES = {"constrained": {"layout": "constrained"}, "tight": {"layout": "tight"}, "plain": {}}


@pytest.mark.parametrize("layout", FIGURES)
@pytest.mark.parametrize("near", [False, True])
def test_a_legend_lies_outside_its_axes_and_apart_from_the_next(layout, near):
    """A dot of the legend within the unit circle would be taken for an eigenvalue."""
    truth = np.eye(2) if near else np.array([[0.0, 0.9], [-0.9, 0.0]])
    cloud = truth + 0.01 * np.random.default_rng(0).normal(size=(30, 2, 2))
    figure, (left, right) = plt.subplots(1, 2, **FIGURES[layout])
    plots.eigenvalues(cloud, truth=truth, ax=left)
    plots.trajectories(np.zeros((5, 2)), variance=np.ones((5, 2)), ax=right)
    for _ in range(2):                         # and it stays where it is
        figure.canvas.draw()
        for ax in (left, right):
            legend, own = ax.get_legend().get_window_extent(), ax.get_window_extent()
            assert not legend.overlaps(own) and legend.x0 >= own.x1
            assert legend.x1 <= figure.bbox.x1
        assert not left.get_legend().get_window_extent().overlaps(right.get_tightbbox())
    assert left.get_window_extent().width > 0.15 * figure.bbox.width


def test_eigenvalues_of_the_mean_and_of_draws(learned):  # noqa: F811
    ax = plots.eigenvalues(learned, draws=50, truth=np.eye(D))
    drawn = lines(ax)
    e = np.linalg.eigvals(learned.mean("A"))
    np.testing.assert_allclose(np.sort(drawn["mean"][0]), np.sort(e.real), rtol=1e-6)
    assert len(drawn["50 draws"][0]) == 50 * D
    np.testing.assert_array_equal(drawn["truth"], [[1, 1], [0, 0]])
    with pytest.raises(jp.ShapeError, match="square"):
        plots.eigenvalues(learned, "B")


def test_film_strips_show_frames_and_hatch_missing_ones(learned):  # noqa: F811
    y = series()[0]
    frames = decode(y)
    frames[np.isnan(y[:, 0])] = np.nan
    steps = [0, 4, 8, 11]
    ax = plots.film_strip(learned, decode=decode, observed=frames, steps=steps, limits=(-4, 4))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["observed", "belief"]
    assert [t.get_text() for t in ax.get_xticklabels()] == [str(t) for t in steps]
    sheet = ax.images[0].get_array()[..., 0]
    state = np.concatenate([learned.mean("x0")[None], learned.mean("x")])[steps, 0]
    np.testing.assert_allclose(sheet[3, ::4], (state + 4) / 8, rtol=1e-5)     # the second strip
    np.testing.assert_allclose(sheet[0, ::4][[0, 2]], (y[[0, 8], 0] + 4) / 8, rtol=1e-5)
    assert len(ax.patches) == 2                           # frame 4 and the last one are missing
    assert ax.lines[0].get_xdata()[0] == 3 * 4 - 1        # predicted from the fourth one on
    colour = plots.film_strip({"seen": np.zeros((3, 4, 5, 3))})
    assert colour.images[0].get_array().shape == (4, 3 * 6 - 1, 3)
    with pytest.raises(jp.ShapeError, match="one size"):
        plots.film_strip({"a": np.zeros((3, 4, 5)), "b": np.zeros((3, 5, 5))})
    with pytest.raises(jp.ShapeError, match=r"decode="):
        plots.film_strip(learned)


@pytest.mark.parametrize("name", ["lds", "second order", "hierarchy", "trajectories"])
def test_graphs_show_every_site_and_schedules_every_message(name):
    case = cases()[name]
    compiled = jp.compile(case.model, *case.args, **case.kwargs)
    ax, sites = plots.graph(compiled), compiled.graph.program.sites
    texts = {t.get_text() for t in ax.texts}
    assert {n + ("[t]" if s.scan is not None else "") for n, s in sites.items()} <= texts
    legend = " ".join(t.get_text() for t in ax.get_legend().get_texts())
    assert all(", ".join(b.members) in legend for b in compiled.graph.blocks)
    ax = plots.schedule(compiled.schedule)
    dots = sum(len(a.get_xdata()) for a in ax.lines if a.get_marker() == "o")
    assert dots == sum(len(u.factors) for u in compiled.schedule.updates)
    assert len(ax.get_yticklabels()) == len(compiled.schedule.updates)


def test_graphs_are_rendered_as_files(tmp_path, monkeypatch):
    case = cases()["lds"]
    monkeypatch.setattr("shutil.which", lambda _: None)       # without graphviz
    before = plt.get_fignums()
    path = jp.compile(case.model, *case.args, **case.kwargs).graph.render(tmp_path / "graph")
    assert "<svg" in (tmp_path / "graph.svg").read_text() and path.endswith(".svg")
    assert plt.get_fignums() == before


def test_animations_reveal_what_has_happened(tmp_path):
    ax = plots.plan(np.sin(np.arange(6.0)))
    shown = ax.lines[0]

    def draw(t):
        plots.reveal([shown], t)
        ax.set_title(str(t))

    path = plots.animate(draw, range(1, 5), tmp_path / "new" / "plan.gif", figure=ax.figure)
    assert Image.open(path).n_frames == 4
    clip = ax.transData.inverted().transform(shown.get_clip_box().max)
    np.testing.assert_allclose(clip[0], 4.0)


def test_single_pictures():
    ax = plots.picture(np.eye(3)[..., None], title="goal", edge=plots.COLOURS[2])
    np.testing.assert_array_equal(ax.images[0].get_array(), np.eye(3))
    assert ax.get_title() == "goal"
