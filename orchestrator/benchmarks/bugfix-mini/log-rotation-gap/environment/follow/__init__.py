"""Follows a log file."""

from .follower import Follower

__all__ = ["Follower"]
