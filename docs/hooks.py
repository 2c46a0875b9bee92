"""MkDocs hook: pages of the site that are files of the repository's root, so that each text stands once."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = {"index.md": "README.md", "benchmarks.md": "BENCHMARKS.md", "changelog.md": "CHANGELOG.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The root's file in place of its stub, with links that hold within docs/."""
    name = PAGES.get(page.file.src_uri)
    if name is None:
        return markdown
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    for stub, file in PAGES.items():
        text = text.replace(f"]({file}", f"]({stub}")
    return text
