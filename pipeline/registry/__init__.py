"""The MLflow model registry: versions, the gate before `champion`, copies, and proofs of what a version is."""
