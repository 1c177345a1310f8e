"""Parts of `benchmarks.fuzz_readers`: real files, damage to them, and the readers that must survive it."""
