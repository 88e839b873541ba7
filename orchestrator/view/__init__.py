"""Pictures of a sweep: they read the ledger, and are never called by the engine."""
