"""Parts that several benchmarks share. The tests use some of them too."""
