"""Follow every link of a built site without network: ``python scripts/check_site.py site``.

A page may link to the web, but loads nothing from there: scripts, styles, fonts and images are files of the site.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("link", "href"), *((tag, "src") for tag in ("script", "img", "source", "video", "iframe"))}
"""What a browser fetches by itself."""
LOADED_BY_STYLES = re.compile(r"(?:@import|url\()\s*[\"'(]*\s*((?:https?:)?//[^\"')\s]+)")


class Page(HTMLParser):
    """The links of a page, and what it may be linked to by."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.links: list[tuple[str, bool]] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value and tag != "meta":
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.append((value, (tag, name) in LOADED and ("rel", "canonical") not in attrs))

    def has(self, heading: str) -> bool:
        """Whether a link may end in ``#heading``; the theme's script makes those with two underscores."""
        return not heading or heading in self.ids or heading.startswith("__")


def faults(site: Path) -> Iterator[str]:
    """Say of every dead link, and of everything that is loaded from the web, where it stands."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    for page in pages.values():
        here = page.path.relative_to(site)
        if here.name == "404.html":  # whose links begin at a server's root
            continue
        for link, loaded in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if loaded and parts.scheme != "data":
                    yield f"{here}: loads {link}"
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path.resolve()
            if not target.exists():
                yield f"{here}: {link}: no such file"
            elif target in pages and not pages[target].has(unquote(parts.fragment)):
                yield f"{here}: {link}: no such heading"
    for style in sorted(site.rglob("*.css")):
        for url in LOADED_BY_STYLES.findall(style.read_text()):
            yield f"{style.relative_to(site)}: loads {url}"


def main() -> int:
    """Print what is wrong; return 1 where something is."""
    site = Path(sys.argv[1])
    found = list(faults(site))
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    if not any(site.rglob("*.html")):
        print(f"{site}: expected pages of HTML, got none", file=sys.stderr)
        return 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
