"""A random program runs once: it is compiled as what runs once is, in half of the time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jopa_ppl import compilation
from jopa_ppl.infer import vmp


@pytest.fixture(autouse=True, scope="module")
def lightly_compiled() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vmp, "often", compilation.once)
        yield
