"""Misbehaviour on purpose, for rehearsals and tests: `sweep serve --chaos FILE` plugs it into a sound service.

`rules` reads the file and decides, reproducibly; `requests` injects the faults of requests; `plug_in` has those of
devboxes and the one function that puts them all into a service. Without --chaos none of it is called.
"""
