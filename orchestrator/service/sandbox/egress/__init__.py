"""What a devbox without a network may reach all the same: rules by host, and the proxy that keeps them."""
