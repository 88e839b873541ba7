"""Scoring of a finished scenario run: contracts are checked, scorers run in the devbox, their scores weighed."""
