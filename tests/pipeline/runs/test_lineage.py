from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.data.loader import PartConfig
from pipeline.data.manifest import load_manifest
from pipeline.engine.batch import plan_batch
from pipeline.engine.ranks import Ranks
from pipeline.runs import lineage
from tests.support.saved_run import save_run


def test_tags_name_the_scheduler_and_data_name_every_part_without_passwords(
    tmp_path: Path, shards_grey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, manifest = save_run(tmp_path / "run", shards_grey, mode="off"), load_manifest(str(shards_grey))
    ranks, plan = Ranks(rank=0, world_size=2, device=torch.device("cpu")), plan_batch(config.batch, 2)
    for name in lineage._SLURM:
        monkeypatch.delenv(name, raising=False)
    assert not [key for key in lineage.tags(config, ranks, plan, manifest, 0) if key.startswith("slurm")]
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-4]")
    found = lineage.tags(config, ranks, plan, manifest, 4096)
    slurm = {key: value for key, value in found.items() if key.startswith("slurm")}
    assert slurm == {"slurm.job_id": "17", "slurm.restart_count": "2", "slurm.job_nodelist": "n[1-4]"}
    assert found["biggan.resumed_from"] == "4096" and found["biggan.world_size"] == "2"

    (row,) = lineage.datasets(config, manifest)
    assert row.uri == str(shards_grey) and row.name == shards_grey.name and row.fingerprint == manifest.fingerprint
    parts = {"a": PartConfig("https://me:secret@host/a", 1), "b": PartConfig("s3://bucket/b", 2)}
    mixed = replace(config, data=replace(config.data, uri="", mix=parts))
    assert [(row.name, row.uri) for row in lineage.datasets(mixed, manifest)] == [
        ("a", "https://host/a"),
        ("b", "s3://bucket/b"),
    ]


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # as in an image
    found = lineage.code()
    assert (found["commit"], found["dirty"]) == ("unknown", "unknown") and len(found["sha256"]) == 64
