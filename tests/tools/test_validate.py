"""`jp.validate`: good models pass with the right numbers, wrong ones fail for the right reason."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import jopa_ppl as jp
from jopa_ppl.tools.controllability import reachability

T, SD, NOISE = 80, 0.1, 0.05
TRUE_A, TRUE_B = np.array([[0.98, 0.15], [-0.15, 0.98]]), np.array([[0.0], [0.3]])
ORIGINS, HORIZON = 40, 8


def plant(y=None, *, sd, noise):
    A = jp.latent("A", dist.Normal(jnp.eye(2), 0.5).to_event(2))
    B = jp.latent("B", dist.Normal(jnp.zeros((2, 1)), 1.0).to_event(2))
    x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    def step(x, y):
        jp.observe("y", dist.Normal(x, sd).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        return jp.latent("x", dist.Normal(A @ x + B @ u, noise).to_event(1)), None

    jp.scan(step, x0, y, length=T)


def simulate(seed, A=TRUE_A, B=TRUE_B):
    rng = np.random.default_rng(seed)
    x, ys, us = rng.normal(size=2), [], rng.normal(size=(T, 1))
    for u in us:
        ys.append(x + SD * rng.normal(size=2))
        x = A @ x + B @ u + NOISE * rng.normal(size=2)
    return np.array(ys, np.float32), us.astype(np.float32)


def learn(ys, us):
    return jp.VMP(jp.condition(plant, {"u": us}), tol=1e-4).run(
        ys, sd=np.float32(SD), noise=np.float32(NOISE))


def check(posterior, ys, us, sd=SD, noise=NOISE, **options):
    return jp.validate(jp.condition(plant, {"u": us}), posterior, ys, sd=np.float32(sd),
                       noise=np.float32(noise), origins=ORIGINS, horizon=HORIZON,
                       num_samples=200, **options)


def failed(report):
    return {c.name for c in report.checks if not c.passed}


@pytest.fixture(scope="module")
def learned():
    return learn(*simulate(0))


@pytest.fixture(scope="module")
def unseen():
    ys, us = simulate(1)
    ys[5] = ys[40, 0] = ys[-2] = np.nan
    return ys, us


@pytest.fixture(scope="module")
def good(learned, unseen):
    return check(learned, *unseen)


def kalman(A, B, ys, us):
    """Predictive means from every origin, by a filter in NumPy: {t: (HORIZON, 2)}."""
    m, P, found = np.zeros(2), np.eye(2), {}
    for t in range(T):
        ahead, mean = [], m
        for k in range(HORIZON):
            ahead.append(mean)
            mean = A @ mean + B @ us[min(t + k, T - 1)]
        found[t] = np.array(ahead)
        for i in range(2):
            if np.isfinite(ys[t, i]):
                gain = P[:, i] / (P[i, i] + SD**2)
                m, P = m + gain * (ys[t, i] - m[i]), P - np.outer(gain, P[i])
        m, P = A @ m + B @ us[t], A @ P @ A.T + NOISE**2 * np.eye(2)
    return found


def test_a_good_model_passes_with_the_errors_of_a_kalman_filter(good, learned, unseen):
    assert good.passed, good
    ys, us = unseen
    ahead = kalman(np.asarray(learned.mean("A")), np.asarray(learned.mean("B")), ys, us)
    origins = np.unique(np.linspace(T // 4, T - HORIZON, ORIGINS).astype(int))
    truth = np.stack([ys[t:t + HORIZON] for t in origins])
    error = np.stack([ahead[t] for t in origins]) - truth
    np.testing.assert_allclose(good.errors[:, 0], np.sqrt(np.nanmean(error**2, (0, 2))), rtol=0.05)
    last = []
    for t in origins:
        rows = [ys[:t, i][np.isfinite(ys[:t, i])][-1] for i in range(2)]
        last.append(rows)
    persistence = np.sqrt(np.nanmean((np.array(last)[:, None] - truth)**2, (0, 2)))
    np.testing.assert_allclose(good.errors[:, 1], persistence, rtol=1e-5)
    assert good["one_step"].value == pytest.approx(
        (good.errors[0, 0] / good.errors[0, 1])**2, rel=1e-5)


def test_reachability_is_that_of_the_true_system(good):
    truth = np.linalg.svd(np.hstack([TRUE_B, TRUE_A @ TRUE_B]))[1][-1]
    assert good["rank"].value == 2
    assert good["reachability"].value == pytest.approx(truth, rel=0.25)


def test_wrong_dynamics_fail_to_predict(unseen):
    """A that turns, and B that pushes, the other way: the past is smoothed, the future missed."""
    report = check(learn(*simulate(0, TRUE_A.T, -TRUE_B)), *unseen)
    assert not report["k_step"].passed and "persistence" in report["k_step"].why
    assert report["reconstruction"].passed
    assert report["rank"].passed and report["reachability"].passed


def test_overconfident_noise_fails_the_coverage_alone(learned, unseen):
    report = check(learned, *unseen, sd=0.3 * SD, noise=0.3 * NOISE)
    assert failed(report) == {"coverage_50", "coverage_90"}
    assert "too narrow" in report["coverage_50"].why
    # 0.3 times the right scale: P(|z| < 0.3 z_75) = 0.16 of 50 %, 0.38 of 90 %.
    assert report["coverage_50"].value == pytest.approx(0.16, abs=0.1)
    assert report["coverage_90"].value == pytest.approx(0.38, abs=0.12)


def test_a_direction_that_actions_do_not_move_fails_alone():
    A, B = np.diag([0.95, 0.98]), np.array([[0.3], [0.0]])
    report = check(learn(*simulate(0, A, B)), *simulate(1, A, B))
    assert failed(report) == {"rank", "reachability"}, report
    assert report["rank"].value == 1 and "reach 1 of 2" in report["rank"].why
    direction = report["rank"].why.split("(")[1]
    assert abs(abs(float(direction.split(", ")[1].rstrip(")"))) - 1) < 0.05


def test_thresholds_are_the_users(learned, unseen):
    report = check(learned, *unseen, thresholds={
        "one_step": 1e-3, "coverage_50": (0.9, 1.0), "reachability": 10.0, "k_step": None})
    assert failed(report) == {"one_step", "coverage_50", "reachability"}
    assert "k_step" not in {c.name for c in report.checks}
    text = str(report)
    assert "<= 0.001" in text and "0.9 to 1" in text and ">= 10" in text
    assert text.splitlines()[-1] == "not fit to plan with: one_step, coverage_50, reachability"
    with pytest.raises(jp.SiteError, match=r"no such check(.|\n)*one_step"):
        report["two_step"]
    with pytest.raises(AttributeError):
        report.horizon = 3


@pytest.mark.parametrize("options,message", [
    ({"thresholds": {"two_step": 1.0}}, r"no such check(.|\n)*two_step"),
    ({"thresholds": {"coverage_50": 0.1}}, r"coverage_50(.|\n)*pair"),
    ({"site": "z"}, r"unknown site(.|\n)*'z'"),
    ({"site": "x"}, r"not among the model's arguments"),
    ({"dynamics": ("A", "C")}, r"unknown site(.|\n)*'C'"),
    ({"dynamics": ("A", "x0")}, r"no linear dynamics")])
def test_bad_input(options, message, learned, unseen):
    with pytest.raises(jp.JopaError, match=message):
        check(learned, *unseen, **options)


def test_a_series_must_be_longer_than_the_horizon(learned, unseen):
    with pytest.raises(jp.ShapeError, match=r"too short for the horizon(.|\n)*<= 60"):
        jp.validate(jp.condition(plant, {"u": unseen[1]}), learned, unseen[0], horizon=61,
                    sd=np.float32(SD), noise=np.float32(NOISE))


@pytest.mark.slow
def test_images_behind_an_encoder():
    """Frames (4, 3, 1) of a state by a linear decoder; the encoder inverts it."""
    rng = np.random.default_rng(3)
    C = rng.normal(size=(12, 2)).astype(np.float32)
    ys, us = simulate(0)
    frames = (ys @ C.T + 0.2 * rng.normal(size=(T, 12))).reshape(T, 4, 3, 1).astype(np.float32)
    frames[:, 0, 0] = 1.0                               # a pixel that never changes says nothing
    frames[7] = np.nan

    def encode(frame):
        z = frame.reshape(*frame.shape[:-3], 12)[..., 1:] @ jnp.linalg.pinv(C[1:]).T
        return dist.Normal(z, 0.15).to_event(1)

    def camera(y=None):         # with known dynamics, and nothing else to be learned
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

        def step(x, y):
            pixels = dist.Normal((C @ x).reshape(4, 3, 1), 0.25).to_event(3)
            jp.observe("y", jp.Amortized(pixels, on=x, message=encode), y)
            u = jp.latent("u", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
            return jp.latent("x", dist.Normal(TRUE_A @ x + TRUE_B @ u, NOISE).to_event(1)), None

        jp.scan(step, x0, y, length=T)

    model = jp.condition(camera, {"u": us})
    report = jp.validate(model, jp.VMP(model).run(frames), frames, horizon=5, dynamics=None)
    assert report.passed, report
    # The decoder's noise is nearly all that is left of the frames.
    sse = report["reconstruction"].value * np.nanvar(frames.reshape(T, 12)[:, 1:], 0).mean()
    assert 0.15 < np.sqrt(sse) < 0.35


def test_only_frames_that_are_scored_are_decoded():
    """A decoder that counts: 2 origins of 5 steps, 60 draws; the whole series once for its mean."""
    decoded = []

    def ink(x):
        def count(x):
            decoded.append(x.size // 2)
            return np.repeat(x, 6, -1)
        out = jax.ShapeDtypeStruct((*x.shape[:-1], 12), x.dtype)
        return jax.pure_callback(count, out, x, vmap_method="expand_dims")

    def camera(frames=None):
        def step(x, frame):
            pixels = dist.Normal(ink(x).reshape(4, 3, 1), SD).to_event(3)
            jp.observe("y", jp.Amortized(pixels, on=x, message=lambda y: dist.Normal(
                y.reshape(12)[::6], SD).to_event(1)), frame)
            return jp.latent("x", dist.Normal(TRUE_A @ x, NOISE).to_event(1)), None

        jp.scan(step, jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), frames, length=T)

    frames = np.repeat(simulate(2, B=np.zeros((2, 1)))[0], 6, -1).reshape(T, 4, 3, 1)
    report = jp.validate(camera, jp.VMP(camera).run(frames), frames, horizon=5, origins=2,
                         num_samples=60, dynamics=None)
    assert report["reconstruction"].passed and report["k_step"].passed, report
    assert sum(decoded) <= 60 * (T + 2 * 5) + 2 * T, sum(decoded)    # tracing and `data` aside


class Known:
    """Beliefs without spread."""

    def __init__(self, A, B):
        self.sites = {"A": np.asarray(A), "B": np.asarray(B)}

    def mean(self, name):
        return self.sites[name]

    def beliefs(self, sites):
        return {}, {n: dist.Delta(self.sites[n], event_dim=2) for n in sites}, ()


@pytest.mark.slow
def test_second_order_dynamics_in_companion_form():
    """x_{t+1} = 2 x_t - x_{t-1} + b u reaches position and velocity; two masses, one pushed."""
    found = reachability(Known([[-1.0, 2.0]], [[0.5]]))
    truth = np.linalg.svd(np.array([[0.0, 0.5], [0.5, 1.0]]))[1][-1]
    assert (found.rank, found.wanted) == (2, 2)
    assert found.smallest == pytest.approx(truth, rel=1e-12)
    apart = np.hstack([-np.eye(2), 2 * np.eye(2)])
    assert reachability(Known(apart, [[1.0], [0.0]])).rank == 2          # of 4
    assert reachability(Known(apart, np.eye(2))).rank == 4
    spring = apart + 0.1 * np.array([[0, 0, -1, 1], [0, 0, 1, -1]])
    assert reachability(Known(spring, [[1.0], [0.0]])).rank == 4
