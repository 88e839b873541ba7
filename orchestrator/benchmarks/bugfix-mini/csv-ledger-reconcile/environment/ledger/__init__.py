"""The bank's statements and our books."""
