"""Check a built site: every local link leads to a file and an anchor, and nothing is loaded from elsewhere."""

from html.parser import HTMLParser
from pathlib import Path
import sys
from urllib.parse import unquote
from urllib.parse import urlsplit

_LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src")}


class Page(HTMLParser):
    """The links, the loaded files and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[tuple[str, bool]] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag links to, loads or names."""
        values = dict(attrs)
        self.anchors |= {value for value in (values.get("id"), values.get("name")) if value}
        # An address that is only announced is not loaded.
        if tag == "link" and values.get("rel") in ("canonical", "edit", "next", "prev"):
            return
        for name in ("href", "src"):
            if values.get(name):
                self.links.append((str(values[name]), (tag, name) in _LOADED))


def main(site: Path) -> None:
    """Exit with every broken link of the site."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    broken, num_links = [], 0
    for path, page in pages.items():
        # The page for missing addresses is served from any place, so its links have no base.
        if path.name == "404.html":
            continue
        for link, is_loaded in page.links:
            num_links += 1
            problem = _problem(link, is_loaded, path, pages)
            if problem:
                broken.append(f"{path.relative_to(site.resolve())}: '{link}' {problem}")
    if broken or not pages:
        sys.exit(f"site: {len(broken)} broken links in {len(pages)} pages\n" + "\n".join(sorted(set(broken))))
    print(f"site: {len(pages)} pages, {num_links} links checked, nothing is loaded from elsewhere")


def _problem(link: str, is_loaded: bool, page: Path, pages: dict[Path, Page]) -> str | None:  # noqa: FBT001
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return "is loaded from elsewhere" if is_loaded and parts.scheme in ("http", "https", "") else None
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_file():
        return "does not exist"
    if parts.fragment and target in pages and not parts.fragment.startswith("__"):
        return None if unquote(parts.fragment) in pages[target].anchors else "has no such anchor"
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
