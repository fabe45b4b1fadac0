"""What the project is beside its code: names of modules, extras, help texts, the README shown."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import jopa_ppl as jp

ROOT = Path(__file__).parents[1]
EXAMPLES = [f"examples.{p.stem}" for p in sorted((ROOT / "examples").glob("[!_]*.py"))
            if p.stem != "notebook"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_functions_that_hide_a_module_carry_its_names():
    """`import jopa_ppl.compare as m` and `jopa_ppl.compare(..)` both work; nothing else hides."""
    hidden = []
    for found in pkgutil.walk_packages(jp.__path__, "jopa_ppl."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        package, _, name = found.name.rpartition(".")
        if not isinstance(getattr(sys.modules[package], name), ModuleType):
            hidden.append(module)
    assert [m.__name__ for m in hidden] == ["jopa_ppl.compare"]
    import jopa_ppl.compare as m
    assert m is jp.compare is m.compare and m.Comparison is jp.Comparison and m.Gap._fields
    from jopa_ppl.compare import Comparison, compare
    assert compare is jp.compare and Comparison is jp.Comparison


def test_types_and_docstrings_are_announced():
    assert (Path(jp.__file__).parent / "py.typed").exists() and jp.__docformat__ == "google"


def test_the_renderer_comes_with_an_extra():
    project = PROJECT["project"]
    assert not any("[" in need for need in project["dependencies"])
    assert any(need.startswith("gymnasium>") for need in project["dependencies"])
    extras = project["optional-dependencies"]
    assert "classic-control" in extras["control"][0]
    assert any("control" in need for need in extras["dev"])        # what the README installs
    assert re.search(r'pip install -e "\.\[dev\]" && \S+ -m examples.pendulum',
                     (ROOT / "README.md").read_text())


def test_a_package_index_shows_no_link_into_the_repository():
    metadata = pytest.importorskip("hatchling.metadata.core")
    manager = pytest.importorskip("hatchling.plugin.manager").PluginManager()
    text = metadata.ProjectMetadata(str(ROOT), manager).core.readme
    assert "tutorial (`examples/guide/tutorial.md`)" in text and "import jopa_ppl as jp" in text
    assert not [at for at in re.findall(r"\]\(([^)]+)\)", text) if not at.startswith("https://")]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n.endswith("pendulum") else
                                               pytest.mark.slow) for n in EXAMPLES])
def test_examples_tell_how_they_are_run(name):
    done = subprocess.run([sys.executable, "-m", name, "--help"], capture_output=True, text=True,
                          check=True, cwd=ROOT)
    assert done.stdout.startswith(f"usage: python -m {name} [-h]")
    options = done.stdout.partition("options:")[2]
    for option in re.findall(r"^  (--[a-z-]+)[^\n]*?(?:\n|  )", options, re.M):
        told = re.search(rf"^  {option}\b[^\n]*?(  +|\n {{10,}})(\S[^\n]*)", options, re.M)
        assert told and told[2].strip(), f"{option} has no help"


def test_the_torque_is_named_where_the_job_is():
    """Pendulum-v1 ships with 2 N m: who says its name says, there, which torque it has here."""
    told = [(page, part) for page in (ROOT / "README.md", *(ROOT / "examples").rglob("*.md"))
            for part in re.split(r"\n\s*\n", page.read_text())]
    told += [(page, ast.get_docstring(ast.parse(page.read_text())) or "")
             for page in (ROOT / "examples").rglob("*.py")]
    named = [(page, text) for page, text in told if re.search("Pendulum-v1|--cases pendulum", text)]
    assert len(named) >= 9
    assert not [(page, text) for page, text in named if not re.search(r"\b(2|10) N m\b", text)]
    assert "10 N m" in (ROOT / "README.md").read_text().partition("```")[0]
