"""Software that agents need in their devboxes, made once and shown to all of them read-only."""
