"""Scoring of a finished scenario run: contracts are checked, scorers run in the devbox, their scores weighed."""

from orchestrator.service.scoring.scoring import Scoring
from orchestrator.service.scoring.verdict import is_faulty

__all__ = ["Scoring", "is_faulty"]
