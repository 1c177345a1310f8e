"""Check the claims of this project again: `python -m benchmarks.NAME` prints a table and, last, one line of JSON."""
