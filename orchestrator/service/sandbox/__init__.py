"""Sandboxes of devboxes: the contract of a provider of boxes, the two providers of this machine, and their egress."""
