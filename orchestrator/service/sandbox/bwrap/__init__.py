"""Devboxes in sandboxes on this machine: one long-lived bubblewrap per box, our exec agent inside."""

from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider, check_sandbox

__all__ = ["BwrapProvider", "check_sandbox"]
