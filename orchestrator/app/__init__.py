"""The composition root: opens, wires, runs, closes. The only place that knows everybody."""
