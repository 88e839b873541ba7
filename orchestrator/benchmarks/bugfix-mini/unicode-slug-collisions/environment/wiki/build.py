"""Builds the site."""

from pathlib import Path

from .links import render
from .pages import Pages


def read_pages(folder):
    """Returns the Pages of a folder, its files in the order of their names."""
    pages = Pages()
    for path in sorted(Path(folder).glob("*.txt")):
        title, _, text = path.read_text(encoding="utf-8").partition("\n")
        pages.add(title, text)
    return pages


def write_pages(pages, out):
    """Writes one HTML file for each page."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for page in pages:
        (folder / f"{page.slug}.html").write_text(render(pages, page.text), encoding="utf-8")
