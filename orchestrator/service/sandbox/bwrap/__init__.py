"""Devboxes in sandboxes on this machine: one long-lived bubblewrap per box, our exec agent inside."""

from orchestrator.service.sandbox.bwrap.provider import LocalProvider, check_sandbox

__all__ = ["LocalProvider", "check_sandbox"]
