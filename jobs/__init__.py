"""One module per sub-command of `biggan`; see `jobs.cli`."""
