"""The wire: routes, bodies and replies of the benchmark service, no behaviour."""
