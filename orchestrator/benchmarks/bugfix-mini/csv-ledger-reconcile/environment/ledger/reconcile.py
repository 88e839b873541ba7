"""Compares the bank's statement with our books."""
