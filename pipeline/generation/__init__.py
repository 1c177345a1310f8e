"""Generators that draw: loaded from runs, checkpoints and exported models; samples as files; exports; a client."""

from pipeline.generation.entry import sample

__all__ = ["sample"]
