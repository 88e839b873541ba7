"""Scenario runs and benchmark runs: what may become of them, and what a client may ask of them."""
