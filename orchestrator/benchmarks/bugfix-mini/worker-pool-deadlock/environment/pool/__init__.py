"""Runs jobs in a few threads."""

from pool.jobs import Result
from pool.pool import Pool

__all__ = ["Pool", "Result"]
