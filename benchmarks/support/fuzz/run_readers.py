"""List what reads the files of a run, and the answers of servers; see `readers`."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.servers.raw import answering, response
from benchmarks.support.fuzz.readers import biggan
from benchmarks.support.fuzz.tries import Reader

_CONFIG = ("run/config.yaml",)
_NOTES = ("run/*.json", "run/*.jsonl", "run/journal.offset", "run/lock", "run/*/*.json", "run/*/*.jsonl")
_KEPT = ("kept/*.json", "kept/*.yaml")


def _command(*words: str, flags: tuple[str, ...] = ()) -> Callable[[Path], object]:
    return lambda folder: biggan(*words, folder / "run", *flags)


def _prepare(folder: Path) -> None:
    """Start with the run's first configuration, as far as the run's folder goes."""
    from pipeline.config import load_config
    from pipeline.data.manifest import load_manifest
    from pipeline.fault_tolerance import run_mirror
    from pipeline.runs.resume import check_resumable, saved_images
    from pipeline.runs.run_folder import prepare
    from pipeline.storage.run_lock import check_free, is_training

    config = load_config(str(folder / "as_begun.yaml"))
    run_mirror.recover(config.run, config.checkpoint.uri or "")
    is_training(folder / "run")
    check_free(folder / "run", patience=0)
    prepare(config, load_manifest(config.data.uri))
    check_resumable(config)
    saved_images(folder / "run")


def _ask_size(folder: Path) -> None:
    from pipeline.storage import http_files

    with answering(lambda request: response((folder / "head").read_bytes(), b"x")) as address:
        http_files.head(f"{address}/file")


def _restart(folder: Path) -> None:
    from pipeline.cluster import restarts

    restarts.after(folder / "run", 1, "", 3)


def _fence(folder: Path) -> None:
    from pipeline.checkpoint import fencing

    fencing.BEAT = 0.01
    fencing._wait_for_end(str(folder / "kept"), 1)


def _starts(folder: Path) -> None:
    """Read the notes that a start reads on rank 0."""
    from pipeline.cluster import submission
    from pipeline.data import quarantine
    from pipeline.fault_tolerance import health_report, recovery, watchdog
    from pipeline.profiling import mfu
    from pipeline.tracking.journal import Journal
    from pipeline.training import micro_batch

    run = folder / "run"
    recovery._read_history(run)
    mfu._read(run / "efficiency.json")
    micro_batch._read(run)
    quarantine.Quarantine(5, run / "quarantine.jsonl").count()
    Journal(run).close()
    submission.read(run)
    health_report.explain(run, "why", {"loss/d": 1.0}, False)
    watchdog.explain((run / "logs").glob("hang-rank*.txt"))


def _evaluations(folder: Path) -> None:
    """Read evaluations as `biggan register` does, and add to them as `biggan evaluate` does."""
    from pipeline.evaluation import document as evaluation_document
    from pipeline.runs import evaluations
    from pipeline.runs.evaluation_document import Document
    from pipeline.untrusted import parse

    run = folder / "run"
    document = parse(Document, (folder / "document.json").read_text(), "document.json")
    found = evaluations.of_run(run, lambda line: None)
    evaluations.of_weights(found, "0" * 64)
    evaluation_document.track(run, document, False, lambda line: None)
    evaluations.keep(str(run / "evaluation" / "0000004096.json"), document, lambda line: None)
    evaluations.best(found, "IS[x]", lambda line: None)


class _Client:
    """Answer what `claim` asks of MLflow, for a registered model that has only `tags`."""

    def __init__(self, tags: dict[str, str]) -> None:
        self.tags = tags

    def get_registered_model(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(tags=dict(self.tags))

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self.tags[key] = value

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        del self.tags[key]


def _tags(folder: Path) -> None:
    from pipeline.registry import promotion_lock
    from pipeline.runs import evaluations

    texts = {path.stem: path.read_text(errors="replace") for path in folder.iterdir() if path.is_file()}
    tags = {"evaluation": texts.get("evaluation", ""), "evaluation.other": texts.get("claim", "")}
    evaluations.new_tags(tags, evaluations.of_tags(tags, "here"))
    promotion_lock.PATIENCE = 0
    client: Any = _Client({"promotion_claim.a": texts.get("claim", "")})
    with promotion_lock.claim(client, "name", lambda line: None) as check:
        check()


def _ask_server(folder: Path) -> None:
    def answer(request: bytes) -> bytes:
        kind = b'"description"' in request.partition(b"\r\n\r\n")[2]
        about = json.dumps({"predictions": [{"description": (folder / "description.json").read_text(errors="replace")}]})
        body = about.encode() if kind else (folder / "pictures.json").read_bytes()
        return response((folder / ("about.head" if kind else "pictures.head")).read_bytes(), body)

    with answering(answer) as address:
        biggan("sample", address, f"{folder}/out/", "--count", "4")


def _ask_ranges(folder: Path) -> None:
    from pipeline.storage import http_files

    with answering(lambda request: response((folder / "head").read_bytes(), (folder / "body").read_bytes())) as address:
        http_files.read_range(f"{address}/file", 100, 300)


RUN_READERS: tuple[Reader, ...] = (
    Reader("run-status", "run", (*_CONFIG, *_NOTES, *_KEPT), _command("status")),
    Reader("run-report", "run", (*_CONFIG, *_NOTES, "run/samples/*"), _command("report")),
    Reader("run-list", "run", (*_CONFIG, *_KEPT, "kept/*/*.json"), _command("checkpoint", "list")),
    Reader("run-restarts", "run", (*_CONFIG, *_NOTES, "kept/*/*.json"), _restart),
    Reader("run-prepare", "run", (*_CONFIG, *_NOTES, *_KEPT), _prepare),
    Reader("run-start", "run", (*_NOTES, "run/logs/*"), _starts),
    Reader("run-fence", "run", ("kept/fence*",), _fence),
    Reader("run-evaluations", "run", ("run/evaluation/*",), _evaluations),
    Reader("model-tags", "tags", ("*.json",), _tags),
    Reader("server-samples", "answers", ("*",), _ask_server),
    Reader("server-ranges", "ranges", ("*",), _ask_ranges),
    Reader("server-size", "size", ("*",), _ask_size),
)
