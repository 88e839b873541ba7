"""Where the service's devboxes come from, and what is done in them."""
