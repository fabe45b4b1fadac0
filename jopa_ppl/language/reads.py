"""What Python code reads by name, and which code is a library's."""

from __future__ import annotations

import dis
import site
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

# Code that uses one of these may read any attribute of what it is given.
_ANY = frozenset(("getattr", "hasattr", "vars", "dir", "__dict__", "attrgetter", "methodcaller",
                  "asdict", "astuple", "fields", "replace", "copy", "deepcopy"))
# Code that uses one of these reads what is no part of the program's own objects.
_BUILTIN = frozenset(("eval", "exec", "globals", "locals", "__import__"))
_OUTSIDE = frozenset(("open", "environ", "getenv", "load", "loadtxt", "fromfile", "memmap",
                      "read_csv", "read_text", "read_bytes", "import_module", "_getframe"))


class Reads(NamedTuple):
    """Names that code reads, nested functions included.

    names: global ones; attributes: of whatever object; modules: imported while it runs;
    anything: whether it computes the names of attributes; outside: what it reads elsewhere;
    paths: attributes of global names in turn, ("np", "random", "normal").
    """

    names: frozenset[str]
    attributes: frozenset[str]
    modules: frozenset[str]
    anything: bool
    outside: frozenset[str]
    paths: frozenset[tuple[str, ...]]


@lru_cache(4096)
def reads(code: CodeType) -> Reads:
    """What the code reads."""
    names, attributes, modules, anything = set(), set(), set(), False
    paths: list[tuple[str, ...]] = []
    path: tuple[str, ...] = ()
    for step in dis.get_instructions(code):
        kind = step.opname
        if kind == "IMPORT_NAME":
            parts = step.argval.split(".")
            modules |= {".".join(parts[:i + 1]) for i in range(len(parts))}
        elif kind in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            names.add(step.argval)
            paths.append(path := (step.argval,))
            continue
        elif kind == "MATCH_CLASS":
            anything = True
        elif step.opcode in dis.hasname and not kind.startswith(("STORE", "DELETE")):
            attributes.add(step.argval)
            if path:
                paths[-1] = path = (*path, step.argval)
                continue
        path = ()
    for inner in (reads(c) for c in code.co_consts if isinstance(c, CodeType)):
        names |= inner.names
        attributes |= inner.attributes
        modules |= inner.modules
        anything |= inner.anything
        paths += inner.paths
    used = names | attributes
    return Reads(frozenset(names), frozenset(attributes), frozenset(modules),
                 anything or not _ANY.isdisjoint(used), _OUTSIDE & used | _BUILTIN & names,
                 frozenset(paths))


def _folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    found = [paths[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += [*site.getsitepackages(), site.getusersitepackages(), Path(__file__).parent.parent]
    return tuple({f"{path.as_posix()}/" for p in map(Path, found) for path in (p, p.resolve())})


@lru_cache(4096)
def library_file(name: str, folders: tuple[str, ...] = _folders()) -> bool:
    """Whether a file is part of Python, of an installed package or of this one."""
    return name.startswith("<frozen ") or Path(name).as_posix().startswith(folders)


@lru_cache(4096)
def library_module(name: str | None) -> bool:
    """Whether a module is part of Python, of an installed package or of this one."""
    if name is None or name == "__main__":
        return False
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(name) or sys.modules.get(top), "__file__", None)
    return file is not None and library_file(file)


def is_library(x: Any) -> bool:
    """Whether a module, or the class of an object, is a library's: taken as constant."""
    name = x.__name__ if isinstance(x, ModuleType) else getattr(x, "__module__", None)
    return library_module(name) if isinstance(name, str | None) else True
