"""The tars that a user names: a folder, a brace specification or one tar, with what is missing or in the way."""

import re
from collections import Counter, defaultdict

from braceexpand import braceexpand

from pipeline import storage
from pipeline.data.manifest import COMPRESSED, MANIFEST
from pipeline.data.shard_index import index_name
from pipeline.errors import ConfigError
from pipeline.packing.destination import REPORT
from pipeline.packing.index_report import Tars
from pipeline.packing.sample_rules import SampleFault
from pipeline.packing.sources.layout import SPLITS, split_within
from pipeline.storage.addresses import file_name, split_query
from pipeline.wording import command, plural

_MOST_SHARDS = 1_000_000  # that a name may speak of: each that is not there is listed
_NUMBERED = re.compile(r"(.*?)(\d+)((?:-of-(\d+))?\.tar)", re.IGNORECASE)


def find_shards(uri: str) -> Tars:
    """Return the tars in a folder, of a brace specification, or the one that is named.

    Raises ConfigError where there is none, for several splits in one folder, and for what has no places to jump to: pipes
    and compressed tars.
    """
    if uri.startswith("pipe:"):
        raise ConfigError(f"{uri}: a command's output cannot be read from the middle; name the URI itself (s3://, gs://, ...)")
    named, _ = split_query(uri)
    if named.endswith(COMPRESSED):
        raise ConfigError(f"{uri} is compressed, and has no places to jump to: unpack it first (gunzip)")
    if "{" in named or named.endswith(".tar"):
        return _named(uri)
    names = storage.names(uri)
    path = storage.local_path(uri)
    folders = [name for name in names if path and (path / name).is_dir()]
    files = [name for name in names if name not in set(folders)]
    tars = [name for name in files if name.lower().endswith(".tar")]
    packed = [name for name in files if (".tar." in name and name.endswith(COMPRESSED)) or name.endswith(".tgz")]
    if not tars:
        hint = f"{packed[0]} is compressed: unpack it first (gunzip)" if packed else "name a folder of .tar files"
        places = [storage.join(uri, name) for name in folders]
        if below := [place for place in places if any(name.lower().endswith(".tar") for name in storage.names(place))]:
            hint = f"the tars are in {plural(len(below), 'folder')} below it: index each, as in {command('index', below[0])}"
        raise ConfigError(f"no shards at {uri}: {hint}")
    _refuse_splits(uri, tars)
    ours = {MANIFEST, REPORT, *map(index_name, tars), *tars, *packed}
    beside = Counter(_extension(name) for name in files if name not in ours)
    if folders:
        beside["folders"] = len(folders)
    absent, gaps = _gaps(tars)
    faults = [_missing(name) for name in absent]
    faults += [_whole_tar(name, "compressed", "is compressed", "unpack it first (gunzip)") for name in packed]
    return Tars(uri.rstrip("/") or "/", tuple(tars), tuple(faults), dict(sorted(beside.items())), tuple(gaps))


def _named(uri: str) -> Tars:
    path, query = split_query(uri)
    folder = path.partition("{")[0].rpartition("/")[0]
    names = list(dict.fromkeys(file_name(place[len(folder) :].lstrip("/"), uri) for place in braceexpand(path)))
    folder = folder + query or ("/" if uri.startswith("/") else ".")
    there = {name: storage.exists(storage.join(folder, name)) for name in names}
    missing = [name for name in names if not there[name]]
    if len(missing) == len(names):
        which = f"there is no {names[0]}" if len(names) == 1 else f"none of the {len(names):,} shards is there"
        raise ConfigError(f"{uri}: {which} in {folder}: check the folder and the name")
    return Tars(folder, tuple(name for name in names if there[name]), tuple(map(_missing, missing)))


def _missing(name: str) -> SampleFault:
    return _whole_tar(name, "missing", "is not there", "restore it, or name only the tars that are there")


def _whole_tar(name: str, kind: str, reason: str, advice: str) -> SampleFault:
    return SampleFault(shard=name, key="", kind=kind, reason=reason, advice=advice, error=ConfigError)


def _extension(name: str) -> str:
    stem, dot, extension = name.rpartition(".")
    return f".{extension.lower()}" if stem and dot else "no extension"


def _gaps(names: list[str]) -> tuple[list[str], list[str]]:
    """Return (names that NAME-00000-of-00003.tar implies and that are not there, those that gaps in other numbers suggest)."""
    groups: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            groups[match[1], match[3], len(match[2])].add(int(match[2]))
    absent: list[str] = []
    gaps: list[str] = []
    for (before, after, width), numbers in groups.items():
        of = re.search(r"-of-(\d+)", after)
        if of and int(of[1]) > _MOST_SHARDS:
            raise ConfigError(f"{before}{min(numbers):0{width}d}{after} is one of {int(of[1]):,} tars by its name: rename it")
        expected = range(int(of[1])) if of else range(min(numbers), max(numbers) + 1)
        if of or len(expected) <= 2 * len(numbers):  # else they are dates, or other names
            missing = [f"{before}{number:0{width}d}{after}" for number in expected if number not in numbers]
            (absent if of else gaps).extend(missing)
    return absent, gaps


def _refuse_splits(uri: str, names: list[str]) -> None:
    """Raise ConfigError where the names of the tars are those of several splits."""
    splits: dict[str, list[str]] = defaultdict(list)
    for name in names:
        split = split_within(re.sub(r"\.tar$", "", name, flags=re.IGNORECASE))
        splits[split if split in SPLITS else "no split"].append(name)
    if len(splits) > 1:
        kinds = ", ".join(f"{split} ({found[0]})" for split, found in sorted(splits.items()))
        first = next(found for split, found in splits.items() if split != "no split")
        one = command("index", storage.join(uri, _braces(first)), "--out", "DIR")
        raise ConfigError(f"{uri} has tars of several splits, {kinds}: index each by its names, as in {one}")


def _braces(names: list[str]) -> str:
    """Return one name, or a brace expression that stands for all."""
    parts = [_NUMBERED.fullmatch(name) for name in names]
    numbers = [part[2] for part in parts if part]
    ends = {(part[1], part[3]) for part in parts if part}
    alike = len(names) > 1 and len(numbers) == len(names) and len(ends) == 1
    if alike and len(names) == int(numbers[-1]) - int(numbers[0]) + 1:
        before, after = ends.pop()
        return f"{before}{{{numbers[0]}..{numbers[-1]}}}{after}"
    return names[0] if len(names) == 1 else f"{{{','.join(names)}}}"
