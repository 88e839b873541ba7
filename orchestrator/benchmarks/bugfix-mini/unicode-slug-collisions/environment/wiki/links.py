"""Links between pages."""

import html
import re

LINK = re.compile(r"\[\[([^\[\]|]+)(?:\|([^\[\]|]+))?\]\]")


def render(pages, text):
    """Returns the text as HTML, with its links resolved."""
    parts = []
    end = 0
    for match in LINK.finditer(text):
        parts.append(html.escape(text[end : match.start()]))
        parts.append(_link(pages, match[1].strip(), (match[2] or match[1]).strip()))
        end = match.end()
    parts.append(html.escape(text[end:]))
    return "".join(parts)


def _link(pages, title, words):
    page = pages.find(title)
    if page is None:
        return f'<span class="missing">{html.escape(words)}</span>'
    return f'<a href="{html.escape(page.slug)}.html">{html.escape(words)}</a>'
