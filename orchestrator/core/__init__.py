"""The pure centre: records, rules and the fold. No I/O and no clock."""
