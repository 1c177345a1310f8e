"""The place where `biggan index` writes: whose files lie there, whether it can be written, and where the tars are from it."""

import json
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline import storage
from pipeline.data.manifest import MANIFEST, is_manifest, load_manifest
from pipeline.data.shard_index import MAGIC, index_name
from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.storage import removal
from pipeline.storage.addresses import is_web
from pipeline.wording import hide_secrets, plural

REPORT = "index-report.json"
REPORT_FORMAT = "biggan index report"
_ELSEWHERE = "add --out DIR to write the index elsewhere"


def check_destination(destination: str, names: Iterable[str], threads: int) -> None:
    """Find what would stop an index of the tars `names` from being written, before they are read.

    Raises ConfigError for files of other programs and for places that cannot be written, StorageError where a store fails.
    """
    refuse_http(destination)
    try:
        _refuse_files_of_others(destination, list(names), threads)
        _try(destination)
    except (ConfigError, StorageError) as error:
        if _ELSEWHERE not in str(error):
            error.args = (f"{error}; {_ELSEWHERE}",)
        raise


def refuse_http(destination: str) -> None:
    """Raise ConfigError for an address that takes no files."""
    if is_web(destination):
        raise ConfigError(f"{hide_secrets(destination)} cannot be written, as HTTP is read only: {_ELSEWHERE}")


def _refuse_files_of_others(destination: str, names: list[str], threads: int) -> None:
    there = {name.rpartition("/")[0] for name in names} | {""}
    found = {f"{below}/{name}".lstrip("/") for below in there for name in storage.names(storage.join(destination, below))}

    def foreign(name: str) -> bool:
        return storage.read_range(storage.join(destination, name), 0, len(MAGIC)) != MAGIC

    indexes = [index_name(name) for name in names if index_name(name) in found]
    with ThreadPoolExecutor(threads) as pool:
        others = [name for name, other in zip(indexes, pool.map(foreign, indexes), strict=True) if other]
    for name, ours in ((MANIFEST, is_manifest), (REPORT, _is_report)):
        if name in found and not ours(storage.read_bytes(storage.join(destination, name))):
            others.append(name)
    if others:
        more = f" (and {plural(len(others) - 1, 'more file')})" if len(others) > 1 else ""
        raise ConfigError(
            f"{storage.join(destination, others[0])}{more} would be replaced, but belongs to another program: {_ELSEWHERE}"
        )
    if MANIFEST in found:
        _refuse_to_replace(destination, set(names), found)


def _refuse_to_replace(destination: str, names: set[str], found: set[str]) -> None:
    """Raise ConfigError if the manifest at `destination` is the only one of shards that are not to be indexed."""
    try:
        manifest = load_manifest(destination)
    except DataError:  # of no use to anybody
        return
    others = [shard.name for shard in manifest.shards if shard.name not in names]
    if (len(others) == len(manifest.shards)) if manifest.tars else any(name in found for name in others):
        place = storage.join(destination, MANIFEST)
        raise ConfigError(f"{place} would be replaced, and it is that of other shards ({others[0]}, ...): {_ELSEWHERE}")


def _is_report(data: bytes) -> bool:
    try:
        document = json.loads(data)
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("format") == REPORT_FORMAT


def _try(destination: str) -> None:
    """Write something and remove it. A local folder that is not there yet is tried in the one above, and not made."""
    if path := storage.local_path(destination):
        path = path.absolute()
        there = next(place for place in (path, *path.parents) if os.path.lexists(place))
        try:
            with tempfile.TemporaryFile(dir=there):
                return
        except OSError as error:
            raise ConfigError(f"cannot write {destination}: {error.strerror}") from None
    with removal.trial(destination, ".biggan-index.", may_stay=True) as probe:
        storage.write_bytes(probe, b"")


def same_folder(one: str, other: str) -> bool:
    """Return whether two addresses name one folder, however they are written."""
    return _place(one) == _place(other)


def _place(uri: str) -> str | Path:
    path = storage.local_path(uri)
    return path.resolve() if path else uri.rstrip("/")


def address(folder: str, destination: str) -> tuple[str, str]:
    """Return (`Manifest.tars`, `Manifest.tars_from_here`) for tars in `folder` and a manifest in `destination`."""
    if same_folder(folder, destination):
        return "", ""
    path, here = storage.local_path(folder), storage.local_path(destination)
    if not path:
        return folder.rstrip("/"), ""
    absolute = str(path.absolute())
    if not here or os.path.commonpath([path.resolve(), here.resolve()]) == "/":
        return absolute, ""
    return absolute, os.path.relpath(path.resolve(), here.resolve())
