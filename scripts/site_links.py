"""For MkDocs: links that lead out of docs/, into the code, become text: the site does not hold the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s]*)\)")


def on_page_markdown(markdown: str, /, *, page: Any, config: Any, files: Any) -> str:
    """Return the page without these links; called by MkDocs for every page."""
    docs = Path(config["docs_dir"])
    folder = (docs / page.file.src_uri).parent

    def kept(link: re.Match[str]) -> str:
        target = (folder / link[2].partition("#")[0]).resolve()
        return link[0] if target.is_relative_to(docs.resolve()) else link[1]

    return LINK.sub(kept, markdown)
