"""What a run records: a journal on local disk, its delivery to MLflow, and lines on the terminal."""
