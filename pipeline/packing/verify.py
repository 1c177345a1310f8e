"""All bytes of shards read again and compared with index and manifest."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import google_crc32c

from pipeline.data.manifest import Manifest, Shard, load_manifest
from pipeline.data.shard_index import load_index
from pipeline.data.tar import BLOCK, TarError, members
from pipeline.errors import DataError, UserError
from pipeline.packing.tar_samples import MAX_MEMBER, Progress, Scan, pieces
from pipeline.storage.containment import below
from pipeline.storage.store_errors import RefusedError
from pipeline.wording import hide_secrets, plural


def verify(uri: str, threads: int, progress: Progress) -> list[str]:
    """Read everything again; returns what is not as index and manifest say, one line each.

    Raises RefusedError if the store refuses for good.
    """
    manifest = load_manifest(uri)

    def check(shard: Shard) -> list[str]:
        return list(_faults(uri, manifest, shard, progress))

    with ThreadPoolExecutor(threads, "verify") as pool:
        return [fault for faults in pool.map(check, manifest.shards) for fault in faults]


def _faults(uri: str, manifest: Manifest, shard: Shard, progress: Progress) -> Iterator[str]:
    tar, found = below(manifest.tars or uri, shard.name, uri), Scan(name=shard.name)
    place = hide_secrets(tar)
    rows: dict[int, tuple[int, int]] = {}
    try:
        index = load_index(uri, shard, manifest.source, manifest.tars, len(manifest.classes))
        rows = {block: (length, crc) for block, length, crc, _ in index.tolist()}
    except DataError as error:
        yield str(error)
    try:
        for member in members(pieces(tar, found, progress), lambda _, size: size <= MAX_MEMBER):
            expected = rows.pop(member.offset // BLOCK, None)
            if expected and expected != (member.size, google_crc32c.value(member.data or b"")):
                yield f"{place}: {member.name} is not the image that its index means"
    except RefusedError:  # by a store or server for good: says nothing of the shards
        raise
    except (TarError, UserError) as error:
        yield f"{place}: {error}"
        return
    if rows:
        yield f"{place} lacks {plural(len(rows), 'image')} of its index"
    if found.bytes != shard.bytes:
        yield f"{place} has {found.bytes:,} bytes instead of {shard.bytes:,}"
    elif found.crc32c != shard.crc32c:
        yield f"{place} does not have its checksum"
    progress(shard.samples, 0)
