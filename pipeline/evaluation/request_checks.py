"""What can be wrong with a request before anything is read."""

import difflib
import re
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.evaluation.extractors import PRETRAINED
from pipeline.evaluation.measure import OPTIONAL
from pipeline.evaluation.networks import parse_resizer
from pipeline.evaluation.request import EvaluationRequest

_LEAST = {"samples": 2, "real": 2, "seed": 0, "crop": 1, "standing": 2, "processes": 1, "batch": 1}


def check(request: EvaluationRequest, *, follow: bool) -> None:
    """Raises ConfigError for numbers and names that mean nothing."""
    for name, least in _LEAST.items():
        value = getattr(request, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} {value}: must be at least {least}")
    if not request.truncations:
        raise ConfigError("truncations is empty: name at least one, None for none")
    if unknown := set(request.metrics.split(",") if request.metrics else ()) - set(OPTIONAL):
        raise ConfigError(f"--metrics {','.join(sorted(unknown))}: there are {', '.join(OPTIONAL)} (FID always)")
    _check_extractor(request)
    if follow and (request.checkpoint is not None or not Path(request.model, "config.yaml").is_file()):
        raise ConfigError("--follow takes the folder of a run, and no --checkpoint: it evaluates them all")


def _check_extractor(request: EvaluationRequest) -> None:
    name = request.extractor or ""
    if name not in PRETRAINED:
        if near := difflib.get_close_matches(name.lower(), PRETRAINED, 1, 0.7):
            raise ConfigError(f"--extractor {name}: did you mean {near[0]}? Call a judge something less like it")
        if name and not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(f"--extractor {name}: use letters, digits, _ - and . for the name of a judge")
    own_weights = [known for known, entry in PRETRAINED.items() if entry.weights]
    for flag, partners in (("weights", own_weights), ("weights_sha256", own_weights), ("resizer", list(PRETRAINED))):
        if getattr(request, flag) is not None and name not in partners:
            raise ConfigError(f"--{flag.replace('_', '-')} goes only with --extractor {' or '.join(partners)}")
    if request.resizer:
        parse_resizer(request.resizer)
