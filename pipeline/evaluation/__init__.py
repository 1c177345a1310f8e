"""How good samples are: extractors, metrics, reference statistics, and the document of an evaluation."""

from pipeline.evaluation.entry import evaluate

__all__ = ["evaluate"]
