"""The package's own rules: imports point one way, importing does nothing.

FLOORS is the house to reach, bottom first, with the files that will live on each. An import,
wherever it stands in a file, goes to the same floor or down, and never in a circle.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1] / "jopa_ppl"
FLOORS = {
    "text": "errors arrays atomic settings keys colours version inference.compilation",
    "linalg": "messages",
    "language": "primitives missing series lengths distributions queries earlier networks "
                "predictive graph.precision graph.source graph.watch graph.reads graph.tracing "
                "graph.faults",
    "proof": "graph.structure graph.axis_rules graph.primitive_rules graph.loop_rules "
             "graph.analysis",
    "beliefs": "",
    "program": "graph.program graph.distributions graph.trace graph.naming graph.scan_inputs "
               "graph.outside graph.unroll graph.fingerprint graph.determinants graph.conjugacy",
    "graph": "graph.factor_graph graph.blocks graph.build graph.tables graph.drawing",
    "engine": "inference.layout inference.bind inference.beliefs inference.chain_belief "
              "inference.noise_beliefs inference.energy inference.engine inference.masks "
              "inference.likelihoods inference.schedule inference.steps inference.forward "
              "inference.unseen inference.marginals inference.value inference.decide "
              "inference.checks inference.rounding inference.signature "
              "inference.outcome inference.compiled",
    "posterior": "posterior prediction density draws labels storage files export run_data "
                 "checkpoints writing",
    "infer": "inference.vmp inference.em_steps inference.variational_em batches importance",
    "tools": "plots compare engines guides validation hindcast controllability explaining "
             "compiling",
    "top": "jopa_ppl __main__",
}
HEIGHT = {name: height for height, names in enumerate(FLOORS.values()) for name in names.split()}


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts) or "jopa_ppl"] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports anywhere, but for types alone."""
    tree = ast.parse(path.read_text())
    typing = {id(x) for node in ast.walk(tree) if isinstance(node, ast.If)
              and ast.unparse(node.test) == "TYPE_CHECKING" for x in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jopa_ppl"):
            own = node.module.removeprefix("jopa_ppl").lstrip(".")
            whole = [f"{own}.{a.name}".lstrip(".") for a in node.names]
            found |= {w if w in known else own or "jopa_ppl" for w in whole}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("jopa_ppl").lstrip(".") or "jopa_ppl"
                      for a in node.names if a.name.partition(".")[0] == "jopa_ppl"}
    return found - {"graph", "inference"}


def height(module: str) -> int:
    """A file's floor, or its folder's."""
    return HEIGHT[module if module in HEIGHT else module.partition(".")[0]]


def test_imports_point_one_way():
    known = modules()
    wrong = {(name, other) for name, path in known.items() if name not in ("graph", "inference")
             for other in imports(path, known) if height(other) > height(name)}
    assert not wrong


def test_no_circle_of_imports():
    known = modules()
    needs = {name: imports(path, known) for name, path in known.items()}
    while free := [name for name, others in needs.items() if not others & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, "these import each other, or one that does"


def test_messages_know_nothing_of_ours():
    for path in (ROOT / "messages").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jopa_ppl"):
                assert node.module.startswith("jopa_ppl.messages"), (path.name, node.module)


def test_importing_allocates_nothing_and_changes_no_setting():
    code = ("import jax; before = dict(jax.config.values); import jopa_ppl; "
            "assert dict(jax.config.values) == before; assert not jax.live_arrays()")
    subprocess.run([sys.executable, "-c", code], check=True)
