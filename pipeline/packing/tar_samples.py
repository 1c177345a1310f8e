"""The samples of one tar that another program wrote, in one pass that accounts for every member.

A sample is a run of members with one key, as webdataset has it: the key is the path up to the first dot of the file's name,
what follows is the extension. What cannot be used is a fault, and the pass continues after it.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import google_crc32c

from pipeline import storage
from pipeline.data.tar import Member, TarError, members
from pipeline.errors import ConfigError, DataError, UserError
from pipeline.packing.sample_rules import (
    IMAGES,
    ONE_KEY,
    FoundSample,
    Rules,
    SampleFault,
    Unusable,
    is_image,
    judged,
    listed,
    shown,
)

MAX_MEMBER = 256 << 20
_PIECE = 8 << 20  # bytes of a request
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # webdataset's rule
# Files that desktops, NAS systems, notebooks and old tar programs leave beside the images.
_STRAY = re.compile(r"(?:.*/)?(?:\.[^/]+|(?:__MACOSX|@eaDir|\.ipynb_checkpoints|PaxHeaders?(?:\.\d+)?)/.*)", re.DOTALL)

_APART = "whose members are not side by side"

Progress = Callable[[int, int], None]
"""Told how many more samples and bytes have been read."""


@dataclass(kw_only=True)
class Scan:
    """One shard, read."""

    name: str
    bytes: int = 0
    crc32c: int = 0
    samples: list[FoundSample] = field(default_factory=list)
    faults: list[SampleFault] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    """Members that belong to no sample, by kind."""
    total: int = 0
    """Members in all."""


def scan(uri: str, name: str, rules: Rules, progress: Progress, hopeless: Callable[[Scan], bool] = lambda found: False) -> Scan:
    """Read one tar from end to end.

    `hopeless` is asked after each sample whether to stop reading. What is wrong with the tar or a sample is in
    `Scan.faults`. Raises StorageError where the store fails.
    """
    place, found = storage.join(uri, name), Scan(name=name)
    shared: dict[Any, Any] = {}  # equal labels, sizes and lists of extensions: one object each
    seen: dict[str, tuple[str, ...]] = {}
    unusable: set[str] = set()
    try:
        for key, sample in _groups(place, found, rules, progress):
            try:
                if key in seen:
                    _again(found, sample, seen[key], key in unusable)
                else:
                    one = judged(key, sample, rules)
                    label, extensions, size = (shared.setdefault(same, same) for same in (one.label, one.extensions, one.size))
                    found.samples.append(one._replace(label=label, extensions=extensions, size=size))
            except Unusable as bad:
                unusable.add(key)
                found.faults.append(
                    SampleFault(
                        shard=name,
                        key=shown(key),
                        kind=bad.kind,
                        reason=bad.reason,
                        advice=bad.advice,
                        error=bad.error,
                        members=len(sample),
                    )
                )
            if hopeless(found):
                return found
            seen[key] = seen.get(key, ()) + tuple(member.name for member in sample)
    except TarError as error:
        reason = f"is damaged ({error})" if found.bytes else "has 0 bytes"
        return _left_out(found, "damaged", reason, "get it again", DataError)
    except (ConfigError, DataError, storage.NotFoundError) as error:
        kind = ConfigError if isinstance(error, ConfigError) else DataError
        return _left_out(found, "unreadable", str(error).removeprefix(place).lstrip(" :,"), "", kind)
    found.faults = _merged(found.faults)
    progress(len(found.samples), 0)
    return found


def pieces(place: str, found: Scan, progress: Progress) -> Iterator[bytes]:
    """Yield the bytes of a tar, the next piece on its way while this one is read; size and crc are noted on the way."""
    size = storage.size(place)
    crc = google_crc32c.Checksum()
    with ThreadPoolExecutor(1, "piece") as ahead:
        waiting = ahead.submit(storage.read_range, place, 0, min(size, _PIECE))
        while found.bytes < size:
            piece = waiting.result()
            begin = found.bytes + len(piece)
            if not piece:
                raise DataError(f"{place} became shorter while it was read")
            if begin < size:
                waiting = ahead.submit(storage.read_range, place, begin, min(size, begin + _PIECE))
            if found.bytes == 0 and piece[:2] == b"\x1f\x8b":
                raise ConfigError(f"{place} is compressed, and has no places to jump to: unpack it with gunzip first")
            found.bytes = begin
            crc.update(piece)
            progress(0, len(piece))
            yield piece
    found.crc32c = int.from_bytes(crc.digest())


def key_of(path: str, place: str) -> tuple[str, str] | None:
    """(key, extension), or None for what webdataset passes over. Raises DataError for a path that leads elsewhere."""
    if path.startswith("/") or ".." in path.split("/"):
        raise DataError(f"{place} has a member {path!r}, which points outside: write it again with plain paths")
    if "/" not in path and path.startswith("__") and path.endswith("__"):
        return None
    match = _KEY.fullmatch(path)
    return (match[1], match[2].lower()) if match else None


def _groups(place: str, found: Scan, rules: Rules, progress: Progress) -> Iterator[tuple[str, list[Member]]]:
    """Yield key and members of each run of members with one key; their names are the extensions."""
    sample: list[Member] = []
    last = None
    for member in members(pieces(place, found, progress), _wanted(rules), every=True):
        found.total += 1
        path = _plain(member.name)
        parts = None if member.kind in ("folder", "device") else key_of(path, place)
        if _STRAY.fullmatch(path) or parts is None:
            found.passed_over[_kind(member, path)] += 1
            continue
        if last is not None and parts[0] != last:
            yield last, sample
            sample = []
        last = parts[0]
        sample.append(
            Member(
                name=parts[1], offset=member.offset, size=member.size, data=member.data, kind=member.kind, target=member.target
            )
        )
    if last is not None:
        yield last, sample


def _kind(member: Member, path: str) -> str:
    if member.kind != "file":
        return f"{member.kind}s"
    return "files of other tools (hidden, __MACOSX, ...)" if _STRAY.fullmatch(path) else "files without an extension"


def _plain(path: str) -> str:
    """Return the path without the "./" that `tar -C FOLDER .` puts before it."""
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return path


def _wanted(rules: Rules) -> Callable[[str, int], bool]:
    kind = (rules.label or "cls").partition(":")[0]
    extensions = {rules.image} if rules.image else set(IMAGES)
    extensions |= {kind} if kind in ("cls", "json") else set()

    def wanted(path: str, size: int) -> bool:
        match = _KEY.fullmatch(_plain(path))
        return match is not None and match[2].lower() in extensions and size <= MAX_MEMBER

    return wanted


def _left_out(found: Scan, kind: str, reason: str, advice: str, error: type[UserError]) -> Scan:
    """Return the scan of a shard that cannot be used as a whole."""
    return Scan(
        name=found.name,
        bytes=found.bytes,
        faults=[
            SampleFault(shard=found.name, key="", kind=kind, reason=reason, advice=advice, error=error, members=found.total)
        ],
    )


def _again(found: Scan, sample: list[Member], earlier: tuple[str, ...], unusable: bool) -> None:
    """Raise Unusable for a run of members whose key has been there, unless it only adds files to a sample that is whole."""
    names = {member.name for member in sample}
    if names & set(earlier):
        raise Unusable("with a repeated key", "is a second one with this key", ONE_KEY)
    if unusable or any(is_image(name) for name in names):
        reason = f"is not in one piece: {listed(earlier)} at first, and after other samples {listed(sorted(names))}"
        raise Unusable(_APART, reason, "write the shard again, sorted by name")
    found.passed_over["files apart from their sample"] += len(sample)


def _merged(faults: list[SampleFault]) -> list[SampleFault]:
    """Return one fault for each sample that lies in several pieces: the pieces' own faults only follow from that."""
    apart = {fault.key: fault for fault in faults if fault.kind == _APART}
    members = Counter(dict.fromkeys(apart, 0))
    for fault in faults:
        if fault.key in apart:
            members[fault.key] += fault.members
    others = [fault for fault in faults if fault.key not in apart]
    return others + [fault._replace(members=members[key]) for key, fault in apart.items()]
