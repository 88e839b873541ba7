"""Agents that are a program on this machine and reach their devbox through us."""
