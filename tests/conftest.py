"""What all tests share: they compile much and run little, so that XLA optimises nothing, what it
has compiled is kept for the other files, and Python looks for garbage less often.

Each file starts with empty compilation caches: a process that keeps hundreds of compiled programs
runs out of memory maps, and XLA ends it without a word.

A NumericalWarning is an error in every test, so that no alarm about rounding is false. A test that
is about one catches it, or is marked `filterwarnings("default::jopa_ppl.NumericalWarning")`.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# JAX reads these when it is imported; the processes of one run inherit them.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="jopa_ppl-tests-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.02"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
gc.set_threshold(100_000, 20, 50)

import pytest  # noqa: E402

LONG = tuple(line for line in (Path(__file__).parent / "long.txt").read_text().splitlines()
             if not line.startswith("#"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        file, _, name = item.nodeid.partition("::")       # a name may hold "/", as in [1/tau]
        if f"{Path(file).name}::{name}".startswith(LONG):
            item.add_marker(pytest.mark.slow)
        # In front of a test's own filters, which come after it and win. A name, as pytest looks it
        # up when the test runs: nothing may import JAX before its flags are set above.
        item.add_marker(pytest.mark.filterwarnings("error::jopa_ppl.NumericalWarning"),
                        append=False)


@pytest.fixture(autouse=True, scope="module")
def empty_caches() -> Iterator[None]:
    yield
    from tests.caches import forget
    forget()
    gc.collect()
