"""Equipment for tests, shipped: a virtual clock, an endpoint in memory, rehearsed failures."""
