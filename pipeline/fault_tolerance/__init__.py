"""A run that notices when it goes bad, hangs or shall stop, and that outlives its node."""
