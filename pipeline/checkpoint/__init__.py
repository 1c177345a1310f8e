"""Checkpoints that a kill at any moment cannot spoil: format, saving, fencing, pruning, and import from other projects."""
