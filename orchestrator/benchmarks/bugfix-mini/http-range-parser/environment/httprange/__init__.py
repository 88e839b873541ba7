"""Answers to requests with a Range header."""

from httprange.reply import Reply, respond

__all__ = ["Reply", "respond"]
