"""What the site has from outside this folder: the README as its first page, and the files that pages link to.

A page says `../results/payoff.md`, as it is here; on the site that file lies beside the pages, in the same folders.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
COPIED = (
    "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "results/*.*", "examples/*.py",
    "examples/notebooks/*.*", "configs/*.toml",
    "configs/studies/*.toml", "configs/studies/*/*.toml",
)  # fmt: skip
FENCE = re.compile(r"(^```.*?^```\n)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the README as the first page, and what pages link to."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for path in sorted(path for pattern in COPIED for path in ROOT.glob(pattern)):
        files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Links as they are on the site, except in blocks of code."""
    here = page.file.src_uri
    if "/" in here or here in ("CONTRIBUTING.md", "CHANGELOG.md"):
        return markdown
    outside, inside = ("](docs/", "](") if here == "index.md" else ("](../", "](")
    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else part.replace(outside, inside) for part in parts)
