"""The sides of a comparison, each in its own process: `benchmarks.NAME` starts `benchmarks.arms.NAME`."""
