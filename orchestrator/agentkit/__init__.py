"""Agents, and the way from a name on the command line to an agent."""
