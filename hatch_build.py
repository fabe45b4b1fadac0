"""The README as a package index shows it: links into this repository, which lead nowhere there,
become the paths they name, and pictures of it are left out."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

_HERE = r"\((?!https?://|#)([^)]+)\)"


class Readme(MetadataHookInterface):
    """Sets `readme` of the project's metadata."""

    def update(self, metadata: dict) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = re.sub(rf"!\[[^\]]*\]{_HERE}\n+", "", text)
        text = re.sub(rf"\[([^\]]+)\]{_HERE}", r"\1 (`\2`)", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
