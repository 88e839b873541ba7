"""The provider of sandboxed devboxes: one long-lived bubblewrap for each box, with our exec agent inside."""

from orchestrator.service.sandbox.bwrap.bwrap_provider import BwrapProvider, check_sandbox

__all__ = ["BwrapProvider", "check_sandbox"]
