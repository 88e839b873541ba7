"""What the runner and the service share: locks, logs, and how this program is started again."""
