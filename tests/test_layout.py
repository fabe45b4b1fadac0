"""The package's own rules: imports point one way, importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1] / "jopa_ppl"
LAYERS = {"errors": 0, "distributions": 0, "arrays": 0, "missing": 0, "settings": 1, "keys": 1,
          "lengths": 1, "messages": 1, "series": 1,
          "primitives": 2, "graph": 3, "queries": 4, "earlier": 4, "networks": 4,
          "inference": 4}


def layer(module: str) -> int:
    part = module.removeprefix("jopa_ppl").lstrip(".").split(".")[0]
    return LAYERS.get(part, 5)


def test_imports_point_one_way():
    wrong = []
    for path in ROOT.rglob("*.py"):
        own = ".".join(("jopa_ppl", *path.relative_to(ROOT).with_suffix("").parts))
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jopa_ppl."):
                if layer(node.module) > layer(own):
                    wrong.append(f"{own} imports {node.module}")
    assert not wrong


def test_messages_know_nothing_of_ours():
    for path in (ROOT / "messages").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jopa_ppl"):
                assert node.module.startswith("jopa_ppl.messages"), (path.name, node.module)


def test_importing_allocates_nothing_and_changes_no_setting():
    code = ("import jax; before = dict(jax.config.values); import jopa_ppl; "
            "assert dict(jax.config.values) == before; assert not jax.live_arrays()")
    subprocess.run([sys.executable, "-c", code], check=True)
