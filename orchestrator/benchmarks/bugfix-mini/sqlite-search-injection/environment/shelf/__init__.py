"""A small book shelf in an SQLite file."""
