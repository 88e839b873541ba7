"""Appends the new records of a growing JSON Lines file to a CSV file."""
