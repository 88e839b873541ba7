"""The provider of sandboxed devboxes: one long-lived bubblewrap for each box, with our exec agent inside."""
