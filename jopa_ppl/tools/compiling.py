"""See what a program was compiled to, before running it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jopa_ppl.engine.compiled import Compiled
from jopa_ppl.infer.marginalised import Marginalised
from jopa_ppl.infer.vmp import VMP
from jopa_ppl.tools.explaining import explain_table


def compile(model: Callable, *args: Any, **kwargs: Any) -> Compiled:
    """Compile a program for given arguments: `.graph` and `.schedule` print as tables.

    Pass a `VMP` in place of the program to compile it with its options.

    Raises:
        StructureError, ShapeError, SiteError: as `VMP.run`; no inference is run.
    """
    return (model if isinstance(model, VMP) else VMP(model)).compile(*args, **kwargs)


def explain(model: Callable, *args: Any, **kwargs: Any) -> None:
    """Print one line a site: family, role, block and the message it sends.

    A site that is not conjugate is shown with the operation, file and line that made it so. Pass a
    `VMP` in place of the program to see what its options (messages, blocks) make of it, or a
    `jp.marginalised` program to see what is integrated out.
    """
    print(model.explain(*args, **kwargs) if isinstance(model, Marginalised)
          else explain_table(model, args, kwargs))
