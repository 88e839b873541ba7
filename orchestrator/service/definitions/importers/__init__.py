"""Benchmarks in the forms of others, written as folders of scenarios: one module a form, one table of them."""
