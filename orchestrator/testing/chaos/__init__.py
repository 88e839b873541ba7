"""Misbehaviour on purpose, for rehearsals and tests: what `sweep serve --chaos FILE` puts around a sound service.

`rules` reads the file; `dice` decides, reproducibly; each of the others injects the faults of one seam: `requests`,
`boxes`, `executions`, `scoring`. Without --chaos none of it is called.
"""
