"""What a folder of shards holds: `manifest.json` for the whole; `pipeline.data.shard_index` has the index of each tar.

The manifest carries the crc32c of each tar and of each index, and its fingerprint covers everything but where the tars
are and the note on the source: one number stands for all the data.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from pipeline import storage, untrusted
from pipeline.errors import ConfigError, DataError
from pipeline.storage.addresses import is_web, split_query
from pipeline.wording import command, plural, printable

if TYPE_CHECKING:
    from pipeline.data.manifest_claims import ManifestClaim
from pipeline.storage import trusted_stores
from pipeline.storage.containment import below
from pipeline.wording import hide_secrets

MANIFEST = "manifest.json"
VERSION = 2
INDEXED = "biggan index"
"""`Manifest.source` of shards that another program wrote; that of packed shards is their recipe."""
_FORMAT = "biggan shards"
_OURS = re.compile(rb'\s*\{\s*"format"\s*:\s*"biggan shards"')  # also where the rest is lost
COMPRESSED = (".gz", ".tgz", ".zst", ".bz2", ".xz")


@dataclass(frozen=True)
class _Format:
    format: str


@dataclass(frozen=True)
class Shard:
    """One tar."""

    name: str
    """File name, below `Manifest.tars`."""
    samples: int
    bytes: int
    """Size of the tar."""
    crc32c: int
    """Of the whole tar: `biggan index --verify` compares it. Reading compares that of each image, in the index."""
    index_crc32c: int
    """Of the shard's index."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the sets that a mixture draws from: consecutive shards of its manifest."""

    uri: str
    """Folder of the indexes."""
    tars: str
    """Folder of the tars."""
    shards: int
    weight: float
    labels: tuple[int, ...]
    """The mixture's label for each of the set's own."""
    source: str = ""
    """As of its manifest."""

    @property
    def mend(self) -> str:
        """What to do where a tar or an index is damaged."""
        return f"restore the file, or {again(self.uri, self.source, self.tars)}"


_NOTES = ("source", "tars", "tars_from_here", "parts")  # not in the fingerprint, so that runs know their data everywhere


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A whole split. Sample ids count through the shards in this order, from 0."""

    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    """Samples per class."""
    resolution: int | None
    """Height and width of every image, pixels; None where they differ, and are cropped and resampled when they are read."""
    channels: int
    """1 (every image is grey) or 3 (RGB)."""
    tars: str = ""
    """URI of the folder of the tars, where they are not beside the manifest (shards that another program wrote)."""
    tars_from_here: str = ""
    """The same as a path from the manifest's folder, where both are on one disk: it still holds where both are moved."""
    source: str = ""
    """What was packed and how (a hash), to recognise a finished pack; not part of the fingerprint."""
    parts: tuple[Part, ...] = ()
    """Of a mixture, which is never stored (`pipeline.data.dataset`)."""

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of the content: equal for equal data, whatever it was packed from."""
        content = {name: value for name, value in asdict(self).items() if name not in _NOTES}
        if self.parts:
            content["parts"] = [(part.shards, part.weight, part.labels) for part in self.parts]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`."""
    document = {"format": _FORMAT, "version": VERSION, "fingerprint": manifest.fingerprint}
    document |= {"samples": manifest.samples, **asdict(manifest)}
    del document["parts"]
    if not manifest.tars_from_here:
        del document["tars_from_here"]
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def load_manifest(uri: str, allowed: Sequence[str] = ()) -> Manifest:
    """Read and check the manifest of the shards at `uri`. Its tars may be in another store if that is `allowed`, or was named.

    Raises ConfigError where none is, or where the one that is there belongs to another program or names a store that the user
    has not; DataError if it is damaged or the tars are not where it says.
    """
    if uri.startswith("pipe:"):
        anew = command("index", "URI", "--out", "DIR")
        raise ConfigError(
            f"{uri} is a command, and tars are read from the middle: index what it reads with {anew}, and name DIR"
        )
    path, _ = split_query(uri)
    if "{" in path or path.endswith((".tar", *COMPRESSED)):
        first = ": unpack them first (gunzip), then " if path.endswith(COMPRESSED) else ": "
        anew = command("index", uri.removesuffix(".gz"), "--out", "DIR")
        raise ConfigError(f"{uri} names tars{first}index them once with {anew}, and name DIR")
    try:
        return _load_manifest(uri, allowed)
    except DataError:  # once more: it may have been damaged on its way
        return _load_manifest(uri, allowed)


def is_manifest(data: bytes) -> bool:
    """Return whether these bytes are a manifest of shards, whole or damaged, and not a file of another program."""
    try:
        return untrusted.parse(_Format, data, MANIFEST).format == _FORMAT
    except DataError:
        return _OURS.match(data) is not None


def again(uri: str, source: str, tars: str = "") -> str:
    """Return how to make what is missing or damaged at `uri` again, for a manifest with this source."""
    if source == INDEXED:
        out = ("--out", uri) if tars not in ("", uri) else ()
        return f"index the tars again with {command('index', tars or uri, *out)} and the flags of the first time"
    return f"pack again with {command('shard', 'SRC', uri, '--overwrite')}"


def _load_manifest(uri: str, allowed: Sequence[str]) -> Manifest:
    place = storage.join(uri, MANIFEST)
    try:
        data = storage.read_bytes(place)
    except storage.NotFoundError:
        raise ConfigError(f"no shards at {uri}: {_instead(uri)}") from None
    if not is_manifest(data):
        raise ConfigError(f"{place} is not a manifest of biggan but a file of another program: {_instead(uri, apart=True)}")
    from pipeline.data.manifest_claims import Head, ManifestClaim, wrong_manifest

    try:
        head = untrusted.parse(Head, data, place)
    except DataError:  # too damaged to say who made it
        anew = command("index", "TARS", "--out", uri)
        raise DataError(
            f"{place} is damaged: restore it, {again(uri, '')} if biggan packed these shards, or {anew} if it indexed them"
        ) from None
    anew = again(uri, head.source, head.tars)
    if head.version != VERSION:
        raise ConfigError(f"{place} has version {head.version}, this program reads {VERSION}: {anew}")
    claim = untrusted.parse(ManifestClaim, data, f"{place} is damaged", f"restore it, or {anew}")
    manifest = _manifest(claim)
    wrong = wrong_manifest(claim)
    if not wrong and manifest.fingerprint != claim.fingerprint:
        wrong = "its fingerprint does not fit its content"
    if wrong:
        raise DataError(f"{place} is damaged ({printable(wrong)}): restore it, or {anew}")
    for shard in manifest.shards:
        below(uri, shard.name, hide_secrets(place))
    if manifest.tars:
        trusted_stores.check_read(uri, manifest.tars, hide_secrets(place), allowed)
    return replace(manifest, tars=_find_tars(uri, manifest))


def _instead(uri: str, apart: bool = False) -> str:
    """Return what to do at `uri`, which has no manifest. `apart`: what is written there must go to another folder."""
    if is_web(uri):
        return f"index the tars with {command('index', uri.rstrip('/') + '/{FIRST..LAST}.tar', '--out', 'DIR')}, and name DIR"
    names = storage.names(uri)
    if tars := [name for name in names if name.endswith(".tar")]:
        out = ("--out", "DIR") if apart else ()
        then = " and name DIR" if apart else ""
        return f"index the {plural(len(tars), 'tar')} there with {command('index', uri, *out)}{then}"
    if packed := [name for name in names if ".tar" in name and name.endswith(COMPRESSED)]:
        return f"{packed[0]} is compressed: unpack the tars, then index them with {command('index', uri)}"
    below = [storage.join(uri, name) for name in names[:20]]
    if splits := [place for place in below if storage.exists(storage.join(place, MANIFEST))]:
        return f"name one of its splits: {', '.join(splits)}"
    if tars := [place for place in below if any(name.endswith(".tar") for name in storage.names(place))]:
        return f"index the tars below it with {command('index', tars[0])}, and name that folder"
    if apart:
        return "name the folder that `biggan shard` or `biggan index` wrote"
    if names:  # the source itself, it may be
        return f"pack the images of a folder with {command('shard', uri, 'DIR')}, and name DIR"
    return f"pack them with {command('shard', 'SRC', uri)}"


def _find_tars(uri: str, manifest: Manifest) -> str:
    """Return where the tars are: as said, or as seen from the manifest, where both were moved. Raises DataError."""
    said, here = manifest.tars, storage.local_path(uri)
    if not said or not (path := storage.local_path(said)):
        return said
    places = [said]
    if here and manifest.tars_from_here:
        places.insert(0, os.path.normpath(here.resolve() / manifest.tars_from_here))
    others = [uri] if here else []
    if here and not path.is_absolute():  # of an earlier version: from the folder where it was made, which was above it or not
        others = [str(folder / path) for folder in (here, *here.absolute().parents)] + others
    first = manifest.shards[0]
    for place in places + others:
        tar = below(place, first.name, uri)
        if storage.exists(tar) and storage.size(tar) == first.bytes:
            return place
    if found := next((place for place in places if os.path.isdir(place)), None):
        return found
    raise DataError(
        f"{storage.join(uri, MANIFEST)} says that the tars are in {said}, which is not there: move them back, or "
        f"{again(uri, manifest.source, 'TARS')}"
    )


def _manifest(claim: "ManifestClaim") -> Manifest:
    return Manifest(
        shards=tuple(Shard(**vars(shard)) for shard in claim.shards),
        classes=tuple(claim.classes),
        class_counts=tuple(claim.class_counts),
        resolution=claim.resolution,
        channels=claim.channels,
        tars=claim.tars,
        tars_from_here=claim.tars_from_here,
        source=claim.source,
    )
