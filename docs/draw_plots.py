"""Draw the pictures of the gallery: run the code of ``reference/gallery.md`` and keep what it saves.

python docs/draw_plots.py
"""

import contextlib
import re
import tempfile
from pathlib import Path

import matplotlib

DOCS = Path(__file__).resolve().parent
PICTURES = DOCS / "_static" / "plots"


def main() -> None:
    matplotlib.use("agg")
    page = (DOCS / "reference" / "gallery.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for code in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
            exec(compile(code, "gallery.md", "exec"), names)
        PICTURES.mkdir(parents=True, exist_ok=True)
        for picture in sorted(Path().glob("*.png")):
            (PICTURES / picture.name).write_bytes(picture.read_bytes())


if __name__ == "__main__":
    main()
