"""The Runloop-compatible benchmark service: benchmarks, scenarios, runs and scores; devboxes from a provider."""
