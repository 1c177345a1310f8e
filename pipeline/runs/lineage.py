"""What a run is made of, as tags and data sets for MLflow: code, configuration, data, machines, and where it was resumed."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

from pipeline.config import RunConfig, to_yaml
from pipeline.data.manifest import Manifest
from pipeline.engine.batch import BatchPlan
from pipeline.engine.ranks import Ranks
from pipeline.tracking.records import DatasetRow
from pipeline.wording import hide_secrets

_SLURM = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_JOB_NODELIST", "SLURM_CLUSTER_NAME", "SLURM_ARRAY_TASK_ID")


def tags(config: RunConfig, ranks: Ranks, plan: BatchPlan, manifest: Manifest, resumed_from: int) -> dict[str, str]:
    """Tags of a start. `biggan.resumed_from` is in images, 0 for a new run; `biggan.config_sha256` is of RUN/config.yaml."""
    commit, dirty = _code()
    found = {
        "biggan.dataset_fingerprint": manifest.fingerprint,
        "biggan.config_sha256": config_sha256(config),
        "biggan.world_size": str(ranks.world_size),
        "biggan.micro_batch": str(plan.micro_batch),
        "biggan.git_commit": commit,
        "biggan.git_dirty": dirty,
        "biggan.resumed_from": str(resumed_from),
        "biggan.hostname": socket.gethostname(),
    }
    return found | {name.lower().replace("_", ".", 1): os.environ[name] for name in _SLURM if name in os.environ}


def datasets(config: RunConfig, manifest: Manifest) -> list[DatasetRow]:
    """The data as MLflow's data sets: one for `data.uri`, one for each part of a mixture, all with the whole's fingerprint."""
    uris = {name: part.uri for name, part in config.data.mix.items()}
    if config.data.uri:
        uris[hide_secrets(config.data.uri).rstrip("/").rpartition("/")[2]] = config.data.uri
    profile = json.dumps({"images": manifest.samples, "classes": len(manifest.classes), "shards": len(manifest.shards)})
    rows = []
    for name, uri in uris.items():
        where = uri if "://" in uri else str(Path(uri).resolve())
        rows.append(DatasetRow(name, hide_secrets(where), manifest.fingerprint, profile))
    return rows


def code_sha256() -> str:
    """Of the packages' sources and presets: what nodes that train together must have in common."""
    whole = hashlib.sha256()
    root = Path(__file__).parents[2]
    for package in ("model", "pipeline", "jobs"):
        for path in sorted(p for p in (root / package).rglob("*") if p.suffix in (".py", ".yaml")):
            whole.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return whole.hexdigest()


def config_sha256(config: RunConfig) -> str:
    """Of RUN/config.yaml."""
    return hashlib.sha256(to_yaml(config).encode()).hexdigest()


def _code() -> tuple[str, str]:
    """The commit of the code that trains and whether it was changed since; `unknown` where there is no git or no checkout."""
    if not shutil.which("git") or (commit := _git("rev-parse", "HEAD")).returncode:
        return "unknown", "unknown"
    return commit.stdout.strip(), str(bool(_git("diff", "--quiet", "HEAD").returncode)).lower()


def _git(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)


def code() -> dict[str, str]:
    """Which code this is: commit, whether it was changed since, and the sha256 of the sources."""
    commit, dirty = _code()
    return {"commit": commit, "dirty": dirty, "sha256": code_sha256()}
