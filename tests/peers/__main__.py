"""Models that other systems ship, and what becomes of them here: `python -m tests.peers`.

One line a model: right, right when written otherwise (or somewhat less), right in part, open (why),
not run yet or not written; then the shares. `--run NAME ..` fits and judges rows of these names
anew.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterable

import jax

from jopa_ppl.errors import JopaError
from tests.caches import forget

from .open import UNRUN, WHY
from .row import Row
from .rows import EVERY, OPEN, ROWS, UNTRIED
from .table import TABLE, Peer

KINDS = ("right", "written otherwise", "in part", "open", "not run yet", "not written")


def _others(name: str, rows: Iterable[Row]) -> list[Row]:
    """Rows in which a model is written otherwise."""
    return [r for r in rows if r.name.startswith(f"{name}: ")]


def standing(peer: Peer) -> tuple[str, str]:
    """Which of KINDS a model is, and what there is to say of it."""
    right, rest = {r.name for r in ROWS}, {r.name: r for r in OPEN + UNTRIED}
    done, otherwise, missing = [], [], []
    for need in peer.needs:
        other = _others(need, ROWS)
        if need in right:
            done.append(need)
        elif other:
            otherwise.append(other[0].name.removeprefix(f"{need}: "))
        elif need in rest or _others(need, rest.values()):
            row = rest.get(need) or _others(need, rest.values())[0]
            missing.append((need, WHY[row.name]))
        else:
            missing.append((need, "not written"))
    whole = len(peer.needs) == 1
    text = "; ".join(w if whole else f"{n}: {w}" for n, w in missing)
    if not missing:
        return ("written otherwise", ", ".join(otherwise)) if otherwise else ("right", "")
    if done or otherwise:
        return "in part", text
    reasons = {w for _, w in missing}
    return (reasons.pop(), "") if reasons in ({UNRUN}, {"not written"}) else ("open", text)


def table() -> Counter[str]:
    counts: Counter[str] = Counter()
    for peer in TABLE:
        kind, text = standing(peer)
        counts[kind] += 1
        print(f"{peer.source:12s} {peer.name[:58]:58s} {kind}{': ' if text else ''}{text}")
    return counts


def run(names: list[str]) -> None:
    from .test_peers import fit

    jax.config.update("jax_enable_x64", True)
    for row in EVERY:
        if not any(n in row.name for n in names):
            continue
        begun = time.perf_counter()
        try:
            row.judge(fit(row), row.model, row.args)
            said = "right"
        except (JopaError, AssertionError) as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"{row.name}: {said} ({time.perf_counter() - begun:.0f} s)", flush=True)
        forget()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__)
    parser.add_argument("--run", nargs="+", metavar="NAME", help="parts of rows' names")
    args = parser.parse_args()
    if args.run:
        run(args.run)
        return
    counts, size = table(), len(TABLE)
    shares = [f"{k} {counts[k]} ({100 * counts[k] / size:.0f} %)" for k in KINDS]
    print(f"\nof {size}: {', '.join(shares)}")


if __name__ == "__main__":
    main()
