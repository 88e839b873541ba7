"""Files collected from an attempt: patch, artifacts, trajectory and logs."""
