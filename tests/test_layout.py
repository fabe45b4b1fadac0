"""The package's own rules: imports point one way, importing does nothing.

FLOORS is the house, bottom first: folders, and files beside them. An import, wherever it stands in
a file and be it for a type alone, goes to the same floor or down, and never in a circle.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1] / "jopa_ppl"
FLOORS = ("errors arrays atomic settings colours version compilation double descent", "linalg",
          "language", "proof", "program", "beliefs", "graph", "engine", "posterior", "infer",
          "tools plots compare engines",
          "jopa_ppl __main__", "models")
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names.split()}


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts) or "jopa_ppl"] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports anywhere, for types alone as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: a relative import"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jopa_ppl"):
            own = node.module.removeprefix("jopa_ppl").lstrip(".")
            whole = [f"{own}.{a.name}".lstrip(".") for a in node.names]
            found |= {w if w in known else own or "jopa_ppl" for w in whole}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("jopa_ppl").lstrip(".") or "jopa_ppl"
                      for a in node.names if a.name.partition(".")[0] == "jopa_ppl"}
    return found


def height(module: str) -> int:
    return HEIGHT[module.partition(".")[0]]


def test_imports_point_one_way():
    known = modules()
    wrong = {(name, other) for name, path in known.items()
             for other in imports(path, known) if height(other) > height(name)}
    assert not wrong


def test_no_circle_of_imports():
    known = modules()
    needs = {name: imports(path, known) for name, path in known.items()}
    while free := [name for name, others in needs.items() if not others & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, "these import each other, or one that does"


def test_the_manual_of_a_folder_names_its_files():
    """Each of them, and none that is not there."""
    for folder in sorted({path.parent for path in modules().values()} - {ROOT}):
        manual = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        own = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        rows = [row for row in manual.split("\n") if row.startswith("    ")]
        told = {word for row in rows for word in re.findall(r"\w+", row)}
        told |= set(re.findall(r"`(?:jopa_ppl\.models\.)?(\w+)`", manual))
        assert own <= told, (folder.name, own - told)
        for name in re.findall(r"`(\w+)\.py`", manual):
            assert name in own or (ROOT / f"{name}.py").exists(), (folder.name, name)
        for name in re.findall(r"`jopa_ppl\.([\w.]+)`", manual):
            *path, last = name.split(".")
            at = ROOT.joinpath(*path, *[last] * last[0].islower())      # else it is an attribute
            assert at.is_dir() or at.with_suffix(".py").exists(), (folder.name, name)


def test_linear_algebra_knows_nothing_of_ours():
    for path in (ROOT / "linalg").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jopa_ppl"):
                assert node.module.startswith("jopa_ppl.linalg"), (path.name, node.module)


def test_importing_allocates_nothing_and_changes_no_setting():
    code = ("import jax; before = dict(jax.config.values); import jopa_ppl; "
            "assert dict(jax.config.values) == before; assert not jax.live_arrays()")
    subprocess.run([sys.executable, "-c", code], check=True)


KINDS = {"kind", "family", "gaussian", "structured", "symmetric"}


def kind_tests() -> dict[str, int]:
    """By file outside `beliefs/`, how often it asks what kind of block or family something is: an
    attribute of KINDS that is compared, looked up in a table, or decides a branch, or an object
    that is asked whether it is of a class of beliefs."""
    found: dict[str, int] = {}
    for name, path in modules().items():
        if name.partition(".")[0] in ("beliefs", "language"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            asked = []
            if isinstance(node, ast.Compare):
                asked = [node.left, *node.comparators]
            elif isinstance(node, ast.If | ast.IfExp):
                asked = [node.test]
            elif isinstance(node, ast.BoolOp):
                asked = node.values
            elif isinstance(node, ast.comprehension):
                asked = node.ifs
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".get"):
                asked = node.args[:1]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                asked = [node.func.value]                   # x.family.startswith(..)
            elif isinstance(node, ast.Subscript):
                asked = [node.slice]
            elif isinstance(node, ast.UnaryOp):
                asked = [node.operand]
            elif isinstance(node, ast.Lambda):              # keys of sorts
                asked = node.body.elts if isinstance(node.body, ast.Tuple) else [node.body]
            belief = (isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
                      and "Belief" in ast.unparse(node.args[1]))
            if belief or any(isinstance(x, ast.Attribute) and x.attr in KINDS
                   and not ast.unparse(x.value).endswith("dtype") for x in asked):
                found[name] = found.get(name, 0) + 1
    return found


def test_few_ask_what_kind_a_thing_is():
    # More than 111 before beliefs owned their mathematics and families were rows; it may only fall.
    # Of these four look up a row, one asks what Python's parameters are, two are orders of blocks.
    assert sum(kind_tests().values()) <= 14, kind_tests()
