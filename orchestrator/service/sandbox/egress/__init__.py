"""Network access of a devbox whose network is off: rules by host, and the proxy that keeps them."""
