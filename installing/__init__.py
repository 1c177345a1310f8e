"""What install.py does it with: pip in an environment, held to the hashes of constraints.txt."""
