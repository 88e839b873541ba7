"""Applies numbered SQL files to an SQLite database, each one once."""
