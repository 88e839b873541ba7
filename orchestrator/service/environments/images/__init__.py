"""Container images: their names, the registries and archives they come from, and the store of their layers."""
