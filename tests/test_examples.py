"""The examples run, at small size, and say what they should."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def apart(name: str, out: Path, *options: str) -> dict:
    """The summary of an example, by default of its --fast, in a process of its own: it forks, and
    JAX has threads here."""
    subprocess.run([sys.executable, "-m", f"examples.{name}", "--out", str(out),
                    *(options or ["--fast"])], cwd=ROOT, check=True)
    return json.loads((out / "summary.json").read_text())


def test_quickstart_reaches_its_goal():
    from examples.quickstart import main
    assert main([]) < 0.1


def test_rotating_digits_fast(tmp_path):
    from examples.rotating_digits import main
    main(["--fast", "--out", str(tmp_path)])
    assert any(tmp_path.iterdir())


@pytest.mark.parametrize("torque", [2.0, 10.0])
def test_the_arm_and_its_goals(torque):
    from examples import _arm_env as arm
    env = arm.make(torque)
    assert env.action_space.high == torque and env.spec.id == "Pendulum-v1"
    for angle in (0.0, 2.0):
        frame = arm.at_rest(env, angle)
        assert frame.shape == (arm.SIZE, arm.SIZE, 1)
        np.testing.assert_allclose(env.unwrapped.state, [angle, 0.0], atol=1e-12)
        env.step(np.full(1, 100.0, np.float32))           # 3 / (m l^2) u + 3 g / 2 l sin(angle)
        np.testing.assert_allclose(env.unwrapped.state[1], 0.05 * (3 * torque + 15 * np.sin(angle)),
                                   rtol=1e-6)
    env.close()


@pytest.mark.parametrize("name", ["changing_plant", "co2", "earthquakes", "mountain_car",
                                  "sensor_fusion"])
def test_what_a_user_does_next_is_short(name):
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 80


def test_examples_call_nothing_private():
    """No name with an underscore of anybody else, nor a module of the library's inside."""
    public, own = {"models", "engines", "plots"}, {"_asdict", "_replace", "_fields"}
    found = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jopa_ppl."):
                if node.module.split(".")[1] not in public:
                    found.append((path.name, node.module))
            elif (isinstance(node, ast.Attribute) and node.attr.startswith("_")
                  and node.attr not in own and ast.unparse(node.value) not in ("self", "super()")):
                found.append((path.name, ast.unparse(node)))
    assert not found


def test_swing_up_refuses_parts_of_episodes(capsys):
    from examples.swing_up import parse
    with pytest.raises(SystemExit):
        parse(["--steps", "400", "500"])
    assert "whole episodes of 200 steps" in capsys.readouterr().err


def test_runs_towards_a_goal_are_judged():
    from examples.pendulum import judge
    errors = np.full((3, 80), 1.0)
    errors[0, 10:], errors[1, 40] = 0.01, 0.1          # held; only passed by; never there
    found = judge(0.5, errors)
    assert (found["reach"], found["hold"], found["starts"]) == (2, 1, 3)
    assert found["median_final_error"] == found["largest_final_error"] == 1.0


@pytest.mark.slow
def test_pendulum_fast(tmp_path):
    """It reaches the goal and holds it."""
    summary = apart("pendulum", tmp_path)
    assert summary["reach"] == summary["hold"] == 1
    assert summary["max_torque"] == 10.0 and summary["environment_steps"] == 1000
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
    assert summary["drives"] == summary["reached"] == 1 and 60 < summary["lengths"][0] < 130
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
    summary = main(["--fast", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert 0.75 < summary["inside"] <= 1.0 and summary["years"] == 10
    assert (tmp_path / "picture.png").stat().st_size > 0


def test_earthquakes_fast(tmp_path):
    """Two regimes near those of maximum likelihood, 15.4 and 26.0 a year."""
    from examples.earthquakes import main
    summary = main(["--fast", "--out", str(tmp_path)])
    assert summary["regimes"] == 2 and sum(summary["years"]) == 107
    np.testing.assert_allclose(summary["rates"], [15.4, 26.0], atol=0.6)
    assert 342.32 < summary["nats"]["2"] < 360          # -log p(y) at the maximum, and more
    assert (tmp_path / "picture.png").stat().st_size > 0


@pytest.mark.slow
def test_swing_up_fast(tmp_path):
    summary = apart("swing_up", tmp_path)
    assert summary["environment_steps"] == 400 and summary["starts"] == 2 and summary["seed"] == 0
    assert summary["mean_return"] > -600 and summary["held"] >= 1
    assert summary["ms_per_control_step"] > 0
    assert summary["ahead"] == [1, 5, 10, 20, 40]
    for name in ("open_loop_ratio", "open_loop_ratio_poses"):
        assert len(summary[name]) == 5 and summary[name][0] < 0.6 * summary[name][3] < 0.9
    for name in ("swing_up.png", "imagined.gif"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_swing_up_from_all_starts(seed, tmp_path):
    summary = apart("swing_up", tmp_path, "--seed", str(seed))
    assert summary["environment_steps"] <= 3000 and summary["starts"] == 100
    assert summary["mean_return"] >= -170 and summary["held"] >= 98
    assert summary["open_loop_ratio_poses"][1] < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_pendulum_holds_every_goal(seed, tmp_path):
    goals = ["0", "1.5708", "-1.5708", "0.8"]
    summary = apart("pendulum", tmp_path, "--seed", str(seed), "--goal", *goals)
    assert summary["max_torque"] == 10.0 and len(summary["goals"]) == 4
    for found in summary["goals"]:
        assert found["starts"] == 20 and found["hold"] >= 19 and found["median_final_error"] < 0.045
