"""The Runloop protocol: the only place, with the cloud provider, that imports its client."""
