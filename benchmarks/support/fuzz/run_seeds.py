"""Make a run folder with every file that training, evaluation and submission may leave."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from model.biggan import Generator
from model.ema import EMA
from pipeline.checkpoint import pruning
from pipeline.checkpoint.format import Progress, network_tensors
from pipeline.cluster import restarts, submission
from pipeline.cluster.submission import Submission
from pipeline.config import RunConfig, build, flatten
from pipeline.data.manifest import load_manifest
from pipeline.fault_tolerance.recovery import History
from pipeline.fault_tolerance.watchdog import Hang
from pipeline.generation import load
from pipeline.generation.export import save_files
from pipeline.generation.load import load_generator
from pipeline.liveness import this_process
from pipeline.profiling.mfu import Efficiency
from pipeline.runs.evaluation_document import Document, ExtractorId, RealFigures, Recipe, Reference
from pipeline.runs.resume import note_saved
from pipeline.runs.run_folder import RunState, prepare, read_identity, write_status
from pipeline.runs.trusted_places import checkpoint_uri
from pipeline.tracking.journal import append_line
from pipeline.tracking.records import DatasetRow, MetricsRecord, now
from pipeline.tracking.tracker import Tracker

IMAGES = 4096


def make_run(folder: Path) -> None:
    """Write `folder`/run, `folder`/data (its shards), `folder`/kept (its checkpoints) and `folder`/exported.

    The run knows them by paths from the folder above, so that each copy has its own.
    """
    run, data = Path(folder.name, "run"), Path(folder.name, "data")
    shutil.copytree(Path("shards", "shards"), data)
    manifest = load_manifest(str(data))
    shape = {"resolution": 32, "num_classes": len(manifest.classes), "channels": manifest.channels}
    tree = {
        "run": str(run),
        "total_images": 2 * IMAGES,
        "model": {**shape, "ch": 2, "shared_dim": 8, "g_attention": [], "d_attention": []},
        "data": {"uri": str(data)},
        "batch": {"global_batch": 8, "norm_group": 8},
        "tracking": {"mode": "offline"},
        "checkpoint": {"uri": f"{folder.name}/kept"},
    }
    config = build(tree)
    prepare(config, manifest)
    shutil.copyfile(run / "config.yaml", run.parent / "as_begun.yaml")
    _save(config, list(manifest.classes))
    _track(config)
    _notes(run, config)
    _evaluations(run / "evaluation")
    standing, load.STANDING_SAMPLES = load.STANDING_SAMPLES, 8
    save_files(load_generator(str(run)), Path(folder.name, "exported"))
    load.STANDING_SAMPLES = standing


def _save(config: RunConfig, classes: list[str]) -> None:
    torch.manual_seed(0)
    generator = Generator(config.model)
    tensors = {"generator": network_tensors(generator), "ema": EMA(dict(generator.named_parameters())).averages}
    state = {"model": asdict(config.model), "classes": classes}
    pruning.save(checkpoint_uri(config), Progress(IMAGES), tensors, state, keep=2)


def _track(config: RunConfig) -> None:
    run = Path(config.run)
    tags = {"biggan.git_commit": "0" * 40, "biggan.dataset_fingerprint": "f" * 32, "biggan.config_sha256": "c" * 64}
    row = DatasetRow("data", config.data.uri, "f" * 32, "{}")
    tracker = Tracker(config.tracking, run, read_identity(run)["uid"], flatten(config), tags, [row])
    for step in (2048, IMAGES):
        tracker.metrics({"loss/d": 0.5, "loss/g": 0.1, "images_per_second": 99.0, "time/data": 1.5, "mfu": 0.3}, step)
    tracker.image(np.zeros((8, 8, 3), np.uint8), "samples/ema", IMAGES)
    tracker.artifact_text("a: 1", "config.yaml")
    tracker.artifact("events.jsonl")
    tracker.close("FINISHED")
    (run / "system").mkdir()
    hardware = MetricsRecord(time=now(), metrics={"system/node0/cpu_percent": 12.5}, step=0)
    append_line(run / "system" / "node00000.jsonl", hardware)
    (run / "journal.offset").write_text(json.dumps({"0" * 32: {"journal.jsonl": 100}}))
    (run / "tracking.json").write_text(json.dumps({"why": "away", "refused": ["metric x: too long"]}))


def _notes(run: Path, config: RunConfig) -> None:
    write_status(run, RunState("stopped", IMAGES, 75, "SIGTERM"))
    note_saved(run, IMAGES)
    event = {"time": 1.7e9, "images": 2048, "rollbacks": 0, "kind": "skip", "text": "an update was skipped"}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n")
    bad = {"sample": 3, "shard": "000000.tar", "key": "cat/3", "reason": "crc32c"}
    (run / "quarantine.jsonl").write_text(json.dumps(bad) + "\n")
    (run / "health.json").write_text(json.dumps(asdict(History(1, 1, 2048))))
    (run / "restarts.json").write_text(json.dumps(asdict(restarts.Crashes(IMAGES, 1))))
    (run / "efficiency.json").write_text(json.dumps({"CPU, 1 ranks": asdict(Efficiency(1e9, 1e12))}))
    (run / "micro_batch.json").write_text(json.dumps({"micro_batch": 8, "for": {"seed": 0}, "tried": {"8": 1000}}))
    (run / "lock").write_text(json.dumps(this_process() | {"pid": 1}))
    (run / "logs").mkdir(exist_ok=True)
    hang = Hang(
        rank=0,
        hosts=["node0", "node1"],
        images=2048,
        phase="checkpoint",
        seconds=700.0,
        collectives=12,
        at="pipeline/training/loop.py:100 train",
    )
    (run / "logs" / "hang-rank00000-hang.txt").write_text(json.dumps(asdict(hang)) + "\n10:00:00.000 phase\n")
    place = submission.folder(run)
    place.mkdir()
    submission.freeze(place, config, {"train.sbatch": "#!/bin/bash\n"})
    submission.record(
        place, Submission(scheduler="jobset", job="biggan-1", nodes=2, log="kubectl logs x", then={"evaluate": "12"})
    )
    fence = this_process() | {"host": "0" * 32, "name": "node0", "pid": 1, "released": True}
    Path(checkpoint_uri(config), "fence-0000000001.json").write_text(json.dumps(fence))


def _evaluations(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for number, truncation in enumerate((None, 0.5)):
        method = None if truncation is None else "truncated-normal"
        recipe = Recipe(
            version=1,
            extractor=ExtractorId("x", "0" * 64),
            resizer="none",
            crop=None,
            resolution=32,
            grey=None,
            samples=500,
            truncation=truncation,
            truncation_method=method,
            standing=2048,
            reference=Reference("f" * 32, 500, "test"),
        )
        document = Document(
            run="runs/one",
            images=IMAGES,
            weights_sha256="0" * 64,
            samples=500,
            seed=0,
            truncation=truncation,
            metrics={"FID[x]": 11.5} if number else {"FID[x]": 12.5, "IS[x]": 3.0, "accuracy[x]": 0.9},
            spread={"FID[x]": 0.1},
            floor={"FID[x]": 1.0},
            class_intra_fid={},
            real=RealFigures(test_images=500),
            left_out={},
            recipe=recipe,
            recipe_id=f"{number:016x}",
        ).as_json()
        (folder.parent.parent / "document.json").write_text(json.dumps(document))
        (folder / f"{IMAGES:010d}{'-truncation-0.5' * number}.json").write_text(json.dumps(document, indent=1))
    figures = MetricsRecord(time=now(), metrics={"eval/FID/x": 12.5}, step=IMAGES, recipe="0" * 16)
    append_line(folder / "figures.jsonl", figures)
