"""Rows of `benchmarks.step`, for `benchmarks.gpu` too: a step measured in its own process, and its figures."""

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.arms.step import config_of
from benchmarks.support.limited import DoesNotFitError, FailedError, call
from benchmarks.support.workers import one_rank
from model.config import ModelConfig
from model.describe import training_cost
from pipeline.errors import ConfigError

PRESET = "biggan-128"
SMALL = ["model.resolution=32", "model.ch=16", "model.num_classes=10", "precision=fp32"]
"""Overrides of `PRESET` on a CPU, for which the real one is large, and bf16 slow without AMX."""


def ask(asked: dict[str, Any], limit: float, log: Path) -> dict[str, Any]:
    """Run `benchmarks.arms.step` and return its answer. Raises FailedError, DoesNotFitError."""
    command = [sys.executable, "-m", "benchmarks.arms.step"]
    environment = one_rank(torch.cuda.is_available()) | {"PYTHONWARNINGS": "ignore::FutureWarning"}
    return json.loads(call(command, limit, log, json.dumps(asked), environment))


def row(
    source: str,
    overrides: list[str],
    micro_batch: int,
    *,
    updates: int | None,
    limit: float,
    log: Path,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return one row of the table; with the key `error` if there are no figures.

    `more` is asked of `benchmarks.arms.step`: `search`, `plain`, `trace`.
    """
    begun: dict[str, Any] = {"micro-batch": micro_batch}
    asked = {"what": "step", "source": source, "overrides": overrides, "micro_batch": micro_batch, "updates": updates}
    try:
        config = config_of(source, overrides, micro_batch)
        found = ask({**asked, **more}, limit, log)
    except DoesNotFitError:
        return begun | {"error": "does not fit"}
    except (FailedError, ConfigError) as error:
        return begun | {"error": str(error)}
    if found["skipped"]:
        steps = found["updates"] * (config.batch.d_steps + 1)
        return begun | {"error": f"{found['skipped']} of {steps} optimiser steps were skipped: their gradients are not finite"}
    traced = {key: found[key] for key in ("traced", "kernels", "busy", "gaps", "not traced") if key in found}
    return begun | figures(found, _flops(config.model, config.batch.d_steps)) | traced


def figures(found: dict[str, Any], flops: float) -> dict[str, Any]:
    """Return the columns of a row, from the answer of `benchmarks.arms.step` and counted FLOPs for an image."""
    rate = found["images"] / found["seconds"]
    columns = {"images/s": rate, **{f"{name} s": seconds for name, seconds in found["phases"].items()}}
    columns |= {"GFLOP/image": flops / 1e9, "matrix TFLOP/s": found["rate"] / 1e12, "MFU": flops * rate / found["rate"]}
    columns |= {"GB": found["memory"] / 1e9, "updates": found["updates"], "warm-up s": found["warm"]}
    return columns | ({"threads": found["threads"]} if found["type"] == "cpu" else {})


@cache
def _flops(model: ModelConfig, d_steps: int) -> float:
    return training_cost(model).per_image(d_steps)
