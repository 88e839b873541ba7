"""Misbehaviour on purpose, for rehearsals and tests: what `sweep serve --chaos FILE` plugs into a sound service.

`rules` reads the file; `dice` decides, reproducibly; `requests` and `devboxes` inject the faults; `plug_in` has the one
function that puts them into a service. Without --chaos none of it is called.
"""
