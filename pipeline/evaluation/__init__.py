"""How good samples are: extractors, metrics, reference statistics, and the document of an evaluation."""
