"""The README as a package index shows it: links into the checkout lead nowhere there, so their text alone stays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ReadmeHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = re.sub(r"^!\[[^]]*\]\((?!https://)[^)]*\)\n\n", "", text, flags=re.MULTILINE)
        text = re.sub(r"\[([^]]+)\]\((?!https://|#)[^)]*\)", r"\1", text)
        text = re.sub(r"^<!--.*-->\n", "", text, flags=re.MULTILINE)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
