"""Every Python block of README and guide runs, its figures are those shown, and the API builds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "examples" / "guide").glob("*.md"))]


def given_by_the_reader() -> dict:
    """What the README leaves to its reader: data of 200 steps, where it is and what is wanted."""
    from examples.quickstart import simulate
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(200, 1)).astype(np.float32)
    return {"actions": actions, "y": simulate(actions, rng)[:200].astype(np.float32),
            "now": np.zeros(2), "wanted": np.array([1.0, 0.0])}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page, tmp_path, monkeypatch):
    text = page.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M))
    assert blocks, "no block of Python"
    (tmp_path / "figures").mkdir()
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem, **(given_by_the_reader() if page.stem == "README" else {})}
    for block in blocks:
        first = text.count("\n", 0, block.start(1))       # so that errors name the page's line
        source = "\n" * first + block.group(1)
        (tmp_path / f"{page.stem}.py").write_text(source)
        exec(compile(source, str(tmp_path / f"{page.stem}.py"), "exec"), namespace)
    plt.close("all")
    shown = set(re.findall(r"!\[[^\]]*\]\((figures/[^)]+)\)", text))
    made = {f"figures/{p.name}" for p in (tmp_path / "figures").iterdir()}
    assert made == shown, "figures made and figures shown differ"
    for name in shown:
        assert (page.parent / name).stat().st_size < 150_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_api_reference_builds_without_a_warning(tmp_path):
    ran = subprocess.run([sys.executable, "-m", "pdoc", "jopa_ppl", "-o", str(tmp_path)],
                         cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "warn" not in (ran.stdout + ran.stderr).lower(), ran.stderr
    page = (tmp_path / "jopa_ppl.html").read_text()
    assert "VMP" in page and (tmp_path / "jopa_ppl" / "plots.html").exists()
