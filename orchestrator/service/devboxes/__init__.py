"""The devboxes of the service and the commands in them, whoever provides the boxes."""
