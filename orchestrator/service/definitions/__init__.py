"""Benchmarks on disk and in the store: what a scenario is, and the environment it runs in."""
