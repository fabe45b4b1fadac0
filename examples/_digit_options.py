"""The command line that the studies of digits share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def exemplar(text: str) -> tuple[int, int]:
    """Read DIGIT:INDEX from a command line."""
    try:
        digit, index = map(int, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected DIGIT:INDEX, such as 8:0") from None
    if digit not in range(10) or index not in range(40):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a digit and an index below 40")
    return digit, index


def study_parser(name: str, description: str, *, fast: str,
                 exemplars: Sequence[tuple[int, int]] | None = None) -> argparse.ArgumentParser:
    """A parser of --seeds, --fast, --out and, where a default is given, --exemplars.

    Args:
        name: of the module and of the folder of its results; fast: what --fast does.
    """
    parser = argparse.ArgumentParser(prog=f"python -m examples.{name}", description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", "--seeds", dest="seeds", type=int, nargs="+", metavar="N",
                        help="of the VAE's weights, its training and all that is drawn "
                        "(default: 0 1 2)")
    if exemplars is not None:
        shown = " ".join(f"{digit}:{index}" for digit, index in exemplars)
        parser.add_argument("--exemplars", type=exemplar, nargs="+", default=list(exemplars),
                            metavar="DIGIT:INDEX", help="which of the 40 unseen exemplars of each "
                            f"digit (default: {shown}); the VAE knows 0, 1 and 8")
    parser.add_argument("--fast", action="store_true", help=f"a smoke test: {fast}")
    parser.add_argument("--out", type=Path, default=Path("outputs") / name, metavar="DIR",
                        help=f"where {name}.png and summary.json go (default: %(default)s)")
    return parser


def seeded(options: argparse.Namespace) -> argparse.Namespace:
    """The options with their seeds: 0 with --fast, else 0, 1, 2, where none were given."""
    options.seeds = options.seeds or ([0] if options.fast else [0, 1, 2])
    return options
