"""Generators that draw: loaded from runs, checkpoints and exported models; samples as files; exports; a client."""
