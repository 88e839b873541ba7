"""sweep: the overnight runner for coding-agent benchmarks."""

__version__ = "0.1.0"
