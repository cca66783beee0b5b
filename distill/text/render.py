"""Files as text: pages as Markdown, tables of values as Markdown tables, conversations as dialogue."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import Literal

from bs4 import BeautifulSoup
from markdownify import MarkdownConverter

Format = Literal["plain", "page", "csv", "conversation"]

ROWS = 12
"""Rows of a table, at most: a longer one becomes several."""


def format_of(name: str) -> Format:
    """The format that a file's name says."""
    if name.endswith((".html", ".page")):
        return "page"
    return "csv" if name.endswith(".csv") else "plain"


def render(text: str, kind: Format) -> str:
    """A file's content as text to train on."""
    if kind == "page":
        return _page(text)
    if kind == "csv":
        return "\n\n".join(_tables(text))
    return "\n\n".join(_conversations(text)) if kind == "conversation" else text


def _page(text: str) -> str:
    """HTML or Mallard as Markdown, without navigation."""
    soup = BeautifulSoup(re.sub(r"^\s*<\?xml[^>]*\?>", "", text), "html.parser")
    for element in soup.find_all(["script", "style", "nav", "head", "header", "footer", "info", "form"]):
        element.decompose()
    for element in soup.find_all(class_=re.compile(r"^(nav\w*|toc|menu-bar|sidebar|breadcrumbs?|footer)$")):
        element.decompose()
    for element in soup.find_all(re.compile(":|^(title|item|list|steps|p|code|screen|section)$")):
        element.name = _MALLARD.get(element.name, element.name)
    main = soup.find("main") or soup.find("body") or soup
    converter = MarkdownConverter(heading_style="ATX", bullets="-", strip=["a", "img"])
    lines = (line.rstrip() for line in str(converter.convert_soup(main)).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


_MALLARD = {"title": "h2", "item": "li", "list": "ul", "steps": "ol", "screen": "pre", "section": "div"}


def _tables(text: str) -> Iterator[str]:
    head, *rows = [row for row in csv.reader(text.splitlines()) if row]
    for at in range(0, len(rows), ROWS):
        lines = [head, ["---"] * len(head), *rows[at : at + ROWS]]
        yield "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _conversations(text: str) -> Iterator[str]:
    """Paragraphs between backticks: the conversations in the missions of Endless Sky."""
    for block in re.split(r"^(?=\S)", text, flags=re.MULTILINE):
        lines = (found.strip() for found in re.findall(r"`([^`\n]+)`", block))
        said = [line for line in lines if len(line) > 20]
        if said:
            yield "\n\n".join(said)
