"""Agents that are a Python class or function, run in a worker process."""
