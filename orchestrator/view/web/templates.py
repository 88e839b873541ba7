"""The environment of the templates. Every value is escaped; what no reader could see is shown as Python writes it.

A value that is put into a page goes through `printable` first, so that names with control characters or with marks that
turn the order of text round do no more harm than names with angle brackets. Text of many lines is made by `markup`.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator import __version__
from orchestrator.core.printable import byte_size, counted, printable
from orchestrator.core.records import TrialKey
from orchestrator.view.overview import dollars, where_scored
from orchestrator.view.report import amount, duration, number, span
from orchestrator.view.web import charts

#: Arms that have a colour of their own; others begin again with the first.
COLOURS: Final = 8


def moment(iso: str) -> str:
    """Format a time of ISO 8601 in UTC: 2026-11-30 08:01."""
    return datetime.fromisoformat(iso).astimezone(UTC).strftime("%Y-%m-%d %H:%M") if iso else "-"


def address_of(key: TrialKey, **more: object) -> str:
    """The part of an address that names a trial, as the scripts make it too."""
    words = urlencode({"scenario": key.scenario, "arm": key.arm, "n": key.number, **more}, safe="*")
    return words.replace("~", "%7E")


def code(text: str) -> Markup:
    """A text of others as code in Markdown, which nothing inside ends, and in which nothing is a mention or a link."""
    return Markup("`{}`").format(Markup(printable(text).replace("`", "'").replace("|", "\\|")))  # noqa: S704 - no HTML


def _shown(value: object) -> object:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def environment() -> Environment:
    """The environment with all filters; templates are compiled once in a process."""
    made = Environment(
        loader=PackageLoader("orchestrator.view.web"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "address": address_of,
        "amount": amount,
        "byte_size": byte_size,
        "code": code,
        "counted": counted,
        "duration": duration,
        "moment": moment,
        "money": dollars,
        "number": number,
        "score_span": lambda arm: span(arm.low, arm.high),
        "where_scored": where_scored,
    }
    made.globals |= {"version": __version__, "COLOURS": COLOURS, "box": charts}
    return made


def render(template: str, values: Mapping[str, Any]) -> str:
    """Render a template of this package."""
    return environment().get_template(template).render(values)
