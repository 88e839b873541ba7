"""Progress, report and output formats: they read the ledger, and the engine never calls them."""
