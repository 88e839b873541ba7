"""What an agent is, and how a name on the command line becomes one."""
