"""Whose files lie where shards are packed: those that a manifest or pack.json of packing lists are replaced, others never."""

import re
from collections.abc import Iterable

from pipeline import storage
from pipeline.data.manifest import INDEXED, MANIFEST, Shard, is_manifest
from pipeline.data.shard_index import index_name
from pipeline.errors import ConfigError
from pipeline.packing.progress import REPORT, STATE, is_report, is_state
from pipeline.storage import removal
from pipeline.wording import plural

_NAME = r"\d{6}\.tar(\.idx)?|(manifest|pack|report)\.json"  # of a file that packing writes
_TEMPORARY = re.compile(rf"\.({_NAME})\.[0-9a-f]{{8}}\.tmp")
_SHARD = re.compile(rb'"name": "(\d{6}\.tar)"')  # a class may have a shard's name, too
_SHARD_OR_LEFTOVER = re.compile(rb'"(\d{6}\.tar(?:\.idx)?)"')


def files(shards: Iterable[Shard]) -> list[str]:
    """Return the names of their tars and indexes."""
    return [name for shard in shards for name in (shard.name, index_name(shard.name))]


def shard_files(number: int) -> tuple[str, str]:
    """Return the names of the tar and the index of shard `number`."""
    return f"{number:06d}.tar", index_name(f"{number:06d}.tar")


def inventory(uri: str) -> tuple[set[str], list[str]]:
    """Return the names at `uri` that packing wrote, as its manifest or pack.json there says, and all others.

    Raises ConfigError where one of the others has a name that packing gives to its own.
    """
    found = storage.names(uri)
    ours: set[str] = set()
    for file, is_from_packing, listed in ((MANIFEST, _lists_packed, _SHARD), (STATE, is_state, _SHARD_OR_LEFTOVER)):
        if file in found and is_from_packing(document := storage.read_bytes(storage.join(uri, file))):
            ours |= {file, *(name.decode() for name in listed.findall(document))}
            ours |= {index_name(name) for name in ours if name.endswith(".tar")}
            if file == STATE:  # a shard is written before it is listed
                ours |= set(shard_files(len(_SHARD.findall(document))))
    if ours:
        ours |= {name for name in found if _TEMPORARY.fullmatch(name)}
        if REPORT in found and is_report(storage.read_bytes(storage.join(uri, REPORT))):
            ours.add(REPORT)
    others = [name for name in found if name not in ours]
    if blocking := [name for name in others if re.fullmatch(_NAME, name)]:
        more = f" and {plural(len(blocking) - 1, 'other such file')}" if len(blocking) > 1 else ""
        raise ConfigError(f"{uri} holds {blocking[0]}{more}, which `biggan shard` did not write there: name another DST")
    return ours.intersection(found), others


def _lists_packed(document: bytes) -> bool:
    """Whether it is a manifest of tars that packing wrote; those that `biggan index` lists are somebody else's."""
    return is_manifest(document) and f'"source": "{INDEXED}'.encode() not in document


def remove(uri: str, names: Iterable[str]) -> None:
    """Remove files; the manifest first, so that the rest is never taken for whole."""
    removal.remove_files(uri, sorted(names, key=lambda name: name != MANIFEST))
