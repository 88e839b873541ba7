"""Benchmarks that are fetched: what names one, where it is, and the copies that this user has."""
