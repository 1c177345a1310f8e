"""What we claim, re-runnable: `python -m benchmarks.NAME` prints a table and, last, one JSON line."""
