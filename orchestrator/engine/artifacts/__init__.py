"""What comes home of an attempt: patch, artifacts, trajectory and logs."""
