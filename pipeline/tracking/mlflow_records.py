"""What records of a run's journal are in MLflow: rows, data sets, images and files."""

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.images.pillow import DRAWN, open_image
from pipeline.tracking.records import DatasetRow, ImageRecord, MetricsRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric

log = logging.getLogger(__name__)

_DIGEST_LENGTH = 36  # MLflow refuses longer digests of data


def rows(record: MetricsRecord) -> "list[Metric]":
    from mlflow.entities import Metric

    return [Metric(key, value, record.time, record.step) for key, value in record.metrics.items()]


def describe(row: Any) -> str:
    return f"{row.key!r}" + (f" at {row.step} images" if hasattr(row, "step") else "")


def dataset(row: DatasetRow) -> "DatasetInput":
    """What MLflow shows as data that a run has used; `mlflow.data.get_source` leads to its URI."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    scheme = urlsplit(row.uri).scheme
    kind, key = ("http", "url") if scheme in ("http", "https") else (scheme or "local", "uri")
    source = json.dumps({key: row.uri})
    data = Dataset(row.name, row.fingerprint[:_DIGEST_LENGTH], kind, source, profile=row.profile)
    return DatasetInput(data, [InputTag("mlflow.data.context", "train")])


def log_image(client: "MlflowClient", run_id: str, path: Path, record: ImageRecord) -> None:
    # log_image makes a new name at each call, so a repeated delivery has to look whether the image is there. It writes a
    # PNG, then a WebP thumbnail: where a death has left the first alone, both are written under that name.
    name = f"{record.image.replace('/', '~')}+step+{record.step}+timestamp+{record.time}+"
    there = [Path(file.path) for file in client.list_artifacts(run_id, "images") if name in file.path]
    if any(file.suffix == ".webp" for file in there):
        return
    try:
        image = open_image(path.read_bytes(), DRAWN)
        image.load()
    except OSError as error:  # removed; or empty, after a power cut
        log.warning("MLflow does not get the image %s: %s", path, error)
        return
    if not there:
        key, step, timestamp = record.image, record.step, record.time
        client.log_image(run_id, image, key=key, step=step, timestamp=timestamp, synchronous=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        image.save(Path(folder, there[0].name))
        image.thumbnail((256, 256))
        image.save(Path(folder, there[0].stem + "+compressed.webp"))
        client.log_artifacts(run_id, folder, "images")


def log_file(client: "MlflowClient", run_id: str, path: Path) -> None:
    if path.exists():
        client.log_artifact(run_id, str(path))
    else:
        log.warning("%s has been removed before MLflow had it; the run goes on without it", path)
