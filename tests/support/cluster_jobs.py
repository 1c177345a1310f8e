"""Jobs of clusters as they are described, small and with everything, and their specifications with a misspelt key."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pipeline.cluster.job import ClusterJob

CONFIG = "run: /scratch/run\ntotal_images: 1000\ncheckpoint:\n  uri: s3://bucket/run\n"
SMALL = ClusterJob(name="gan", image="ghcr.io/acme/biggan:1.0", config=CONFIG, gpu="H100")
FULL = ClusterJob(
    name="biggan-128",
    image="ghcr.io/acme/biggan@sha256:" + "0" * 64,
    config=CONFIG,
    nodes=4,
    gpu="H100",
    cpus=96,
    memory_gb=900,
    env={"NCCL_DEBUG": "WARN", "AWS_REGION": "eu-west-1"},
    secrets=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    queue="gpu",
    service_account="trainer",
    node_selector={"cloud.google.com/gke-spot": "true"},
    instance_type="p5.48xlarge",
)
BATCH = replace(FULL, secrets=())


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each key of a tree is, but for keys that are data (labels, limits, environment)."""
    if isinstance(tree, dict) and (not at or at[-1] not in ("labels", "requests", "limits", "nodeSelector", "data", "envs")):
        for key, value in tree.items():
            yield (*at, key)
            yield from places(value, (*at, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from places(value, (*at, index))


def renamed(tree: Any, at: tuple[Any, ...]) -> Any:
    """The tree with one key misspelt."""
    tree = copy.deepcopy(tree)
    node = tree
    for part in at[:-1]:
        node = node[part]
    node[at[-1] + "s"] = node.pop(at[-1])
    return tree
