"""What the short examples have in common: their command line, and the files that they leave."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def parse(name: str, about: str, argv: Sequence[str] | None, fast: Mapping[str, Any],
          **options: tuple[Any, str]) -> argparse.Namespace:
    """`--fast`, which sets some, `--out` and what is named: (default, help) by option."""
    parser = argparse.ArgumentParser(prog=f"python -m examples.{name}", description=about,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, (default, text) in options.items():
        parser.add_argument(f"--{option}", type=type(default), default=default,
                            help=f"{text} ({default})")
    parser.add_argument("--fast", action="store_true",
                        help="a smoke test: " + ", ".join(f"--{k} {v}" for k, v in fast.items()))
    parser.add_argument("--out", type=Path, default=Path("outputs", name),
                        help=f"folder of the results (outputs/{name})")
    args = parser.parse_args(argv)
    return argparse.Namespace(**vars(args) | (fast if args.fast else {}))


def save(args: argparse.Namespace, figure: Figure, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Write summary.json (the options too, numbers to four digits) and picture.png into --out."""
    def short(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {k: short(v) for k, v in x.items()}
        if isinstance(x, (list, tuple)) or getattr(x, "ndim", 0):
            return [short(v) for v in x]
        return x if isinstance(x, (bool, int, str)) else float(f"{float(x):.4g}")

    found = {k: v for k, v in vars(args).items() if k != "out"} | short(summary)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "summary.json").write_text(json.dumps(found, indent=1))
    figure.savefig(args.out / "picture.png", dpi=150)
    print("\n".join(f"{k}: {v}" for k, v in found.items()))
    print(f"written to {args.out}: picture.png, summary.json")
    return found
