"""Tiny HTML templates."""

from tinytpl.errors import MissingValue, TemplateError
from tinytpl.render import render

__all__ = ["MissingValue", "TemplateError", "render"]
