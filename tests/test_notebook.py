"""The notebook runs from its first cell to its last and shows its figures."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("marimo", reason="optional extra: pip install jopa_ppl[notebook]")
ROOT = Path(__file__).parents[1]


def test_notebook_exports_with_its_figures(tmp_path):
    page = tmp_path / "notebook.html"
    ran = subprocess.run(
        [sys.executable, "-m", "marimo", "export", "html", "examples/notebook.py", "-o", str(page),
         "--no-include-code"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    text = page.read_text()
    assert len(set(re.findall(r"data:image/png;base64,[A-Za-z0-9+/]{1000,}", text))) == 3
    assert "goal angle (degrees)" in text and "horizon (steps of 0.1 s)" in text
    miss = float(re.search(r"([\d.]+) degrees", text).group(1))
    assert miss < 5, "the plan does not reach the goal"
