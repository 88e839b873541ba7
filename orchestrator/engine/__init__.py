"""Time and concurrency: what is tried, when, how many at once, and for how long."""
