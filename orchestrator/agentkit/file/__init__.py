"""Agents that a file describes: what to install, what to run, how to read its output."""
