"""The examples run, at small size, and say what they should."""

from __future__ import annotations

import json

import pytest


def test_quickstart_reaches_its_goal():
    from examples.quickstart import main
    assert main([]) < 0.1


@pytest.mark.slow
def test_rotating_digits_fast(tmp_path):
    from examples.rotating_digits import main
    main(["--fast", "--out", str(tmp_path)])
    assert any(tmp_path.iterdir())


@pytest.mark.slow
def test_pendulum_fast(tmp_path):
    from examples.pendulum import main
    summary = main(["--fast", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["reach"] == 2
    for name in ("control.gif", "frames.png", "free_energy.png", "posterior.nc"):
        assert (tmp_path / name).stat().st_size > 0
