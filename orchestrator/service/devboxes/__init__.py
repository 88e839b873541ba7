"""The devboxes of the service and the commands in them, for any provider of boxes."""
