"""The examples run, at small size, and say what they should."""

from __future__ import annotations

import json

import numpy as np
import pytest


def test_quickstart_reaches_its_goal():
    from examples.quickstart import main
    assert main([]) < 0.1


def test_rotating_digits_fast(tmp_path):
    from examples.rotating_digits import main
    main(["--fast", "--out", str(tmp_path)])
    assert any(tmp_path.iterdir())


@pytest.mark.parametrize("options", [(), pytest.param(("--em",), marks=pytest.mark.slow)])
def test_pendulum_fast(options, tmp_path):
    """With the VAE frozen, and refined by variational EM: both reach the goal and hold it."""
    from examples.pendulum import main
    summary = main(["--fast", *options, "--out", str(tmp_path)])
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    for found in (summary, *summary.get("frozen", ())):
        assert found["reach"] == found["hold"] == 1
    assert summary["max_torque"] == 10.0
    for name in ("control.gif", "frames.png", "free_energy.png", "posterior.nc"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.slow
def test_engines_beside_each_other_fast(tmp_path):
    from examples.vmp_vs_svi import main
    summary = main(["--fast", "--cases", "nile", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    nile = summary["nile"]
    # VMP is beaten by no mean-field guide, but by one that couples states and precisions.
    assert nile["svi chain"]["gap_at_the_end"]["median"] > -0.3
    assert nile["svi coupled"]["gap_at_the_end"]["median"] < 0
    assert 0.3 < nile["vmp"]["against_nuts"]["level"]["ratio"] < 0.7      # too narrow
    assert (tmp_path / "nile.png").stat().st_size > 0


@pytest.mark.slow
def test_calibration_fast(tmp_path):
    from examples.calibration import main
    found = main(["--fast", "--out", str(tmp_path)])["coverage"]
    for kind in ("A", "B", "W"):
        gain = found["corrected"][kind]["0.9"][0] - found["VMP"][kind]["0.9"][0]
        assert gain > 0.02 and found["corrected"][kind]["0.9"][0] > 0.78
    assert (tmp_path / "ranks.png").stat().st_size > 0


def test_end_to_end_digits_fast(tmp_path):
    from examples.end_to_end_digits import main
    summary = main(["--fast", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["em_free_energy"] < summary["frozen_free_energy"]
    assert summary["em_vs_mean"] < summary["frozen_vs_mean"]
    assert (tmp_path / "end_to_end_digits.png").stat().st_size > 0


def test_pendulum_replays_an_arm_at_rest():
    """A pose held still repeats itself more often than `NEAR`: its weights stay finite."""
    from examples.pendulum import NEAR, REPLAY, replay
    rng = np.random.default_rng(0)
    features = rng.normal(size=(REPLAY + 50, 6)).astype(np.float32)
    features[:NEAR + 5] = features[0]
    following, _, weights = replay(features[:3, :4], features, features[:, 2:4])
    assert following.shape == (3, REPLAY, 2) and np.isfinite(weights).all()
    assert ((weights > 0.99).sum(1) >= NEAR + 5).all()


def test_controlled_digits_fast(tmp_path):
    from examples.controlled_digits import main
    summary = main(["--fast", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["predicted"]["mean"] < 1.0 and summary["planned"]["max"] < 1.0    # degrees
    assert (tmp_path / "controlled_digits.png").stat().st_size > 0


@pytest.mark.slow
def test_mountain_car_fast(tmp_path):
    from examples.mountain_car import main
    summary = main(["--fast", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["drives"] == 1 and summary["lengths"] == [20] and summary["reached"] == 0
    assert (tmp_path / "picture.png").stat().st_size > 0


@pytest.mark.slow
def test_sensor_fusion_fast(tmp_path):
    from examples.sensor_fusion import main
    summary = main(["--fast", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    error, width = ({k: summary[k][0][i] for k in ("camera", "tachometer", "both")} for i in (0, 1))
    assert error["both"] < 0.75 * min(error["camera"], error["tachometer"])
    assert width["both"] < 0.5 * min(width["camera"], width["tachometer"])
    assert (tmp_path / "picture.png").stat().st_size > 0


@pytest.mark.slow
def test_changing_plant_fast(tmp_path):
    """Only who forgets finds the new gain, and gets to the goal again."""
    from examples.changing_plant import main
    summary = main(["--fast", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert abs(summary["adapts, forgets"]["gain"][0] - summary["gain"]) < 0.2
    after = {k: summary[k]["cost"][1][0] for k in ("fixed", "adapts", "adapts, forgets")}
    assert after["adapts, forgets"] < 0.1 * min(after["fixed"], after["adapts"])
    assert (tmp_path / "picture.png").stat().st_size > 0


def test_co2_fast(tmp_path):
    from examples.co2 import main
    assert 0.75 < main(["--fast", "--out", str(tmp_path)]) <= 1.0
    assert (tmp_path / "co2.png").stat().st_size > 0


@pytest.mark.slow
def test_swing_up_fast(tmp_path):
    from examples.swing_up import main
    summary = main(["--fast", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["environment_steps"] == 400 and summary["starts"] == 2
    assert summary["mean_return"] > -600
    for name in ("swing_up.png", "imagined.gif"):
        assert (tmp_path / name).stat().st_size > 0
