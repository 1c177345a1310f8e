"""A small shard, cut at every place and with every byte flipped, and so its index and its manifest: noticed, or harmless.

What is read is the image and the label that were written, or another of the set in its place, marked as such; or a refusal.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.collate import Collator
from pipeline.data.manifest import MANIFEST, load_manifest
from pipeline.data.order import Order
from pipeline.data.quarantine import Quarantine
from pipeline.data.reader import Reader
from pipeline.data.shard_index import index_name
from pipeline.errors import DataError, UserError
from pipeline.packing.indexer import Tars, index_shards
from pipeline.packing.sample_rules import Rules

# The fast tests look at every n-th place, a prime, so that every field is hit; the slow ones at each.
EACH = pytest.mark.parametrize("step", [101, pytest.param(1, marks=pytest.mark.slow)])
SAMPLES, SIDE = 3, 8


def index(folder: Path) -> None:
    index_shards(Tars(str(folder), ("a.tar",)), str(folder), Rules(), 1, lambda *_: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of one tar: PNG, JPEG and WebP, each with another label; its end is as short as a tar's may be."""
    out, rng = io.BytesIO(), np.random.default_rng(0)
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i, form in enumerate(("png", "jpg", "webp")):
            pixels = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), np.uint8))
            image = io.BytesIO()
            pixels.save(image, Image.registered_extensions()[f".{form}"])
            for name, data in ((f"{i}.cls", b"%d" % (SAMPLES - i)), (f"{i}.{form}", image.getvalue())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    whole = out.getvalue().rstrip(b"\0")
    (tmp_path / "a.tar").write_bytes(whole + bytes(-len(whole) % 512 + 1024))
    index(tmp_path)
    return tmp_path


def read(folder: Path) -> list[tuple[bytes, int, bool]]:
    """(pixels, label, whether it is the sample itself) of each sample, as training reads them."""
    manifest = load_manifest(str(folder))
    reader = Reader(str(folder), manifest, Order(manifest.shards, 0), capacity=4)
    assembler = Collator(reader, (SIDE, SIDE, manifest.channels), 1, Quarantine(SAMPLES))
    try:
        samples = np.arange(manifest.samples)
        batch = assembler.start(samples, np.zeros_like(samples))
        batch.wait()
    finally:
        assembler.close()
        reader.close()
    pixels = [image.numpy().tobytes() for image in batch.images]
    return list(zip(pixels, batch.labels.tolist(), batch.valid.tolist(), strict=True))


def flipped(data: bytes, step: int, bits: int) -> Iterator[bytes]:
    """`data` with one bit changed at every `step`-th place: one after another, or all eight in turn."""
    for place in range(0, len(data), step):
        for bit in range(8) if bits == 8 else [place % 8]:
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            yield bytes(damaged)


def outcomes(folder: Path, name: str, damages: Iterator[bytes]) -> dict[str, int]:
    """How often the set, with another content of that file, was whole, had substitutes, or was refused."""
    wanted = read(folder)
    assert len({(image, label) for image, label, _ in wanted}) == SAMPLES and all(valid for *_, valid in wanted)
    known = {(image, label) for image, label, _ in wanted}
    count = {"whole": 0, "mended": 0, "refused": 0}
    for damaged in damages:
        (folder / name).write_bytes(damaged)
        try:
            found = read(folder)
        except UserError:
            count["refused"] += 1
            continue
        assert len(found) == SAMPLES
        for one, right in zip(found, wanted, strict=True):
            assert one == right or (not one[2] and one[:2] in known), damaged
        count["whole" if found == wanted else "mended"] += 1
    return count


@EACH
def test_every_cut_of_a_shard_costs_only_what_is_behind_it(folder: Path, step: int) -> None:
    data = (folder / "a.tar").read_bytes()
    count = outcomes(folder, "a.tar", (data[:size] for size in range(0, len(data), step)))
    first, last = (data.index(magic) for magic in (b"\x89PNG", b"RIFF"))
    # Refused only where no image is left; whole only behind the last one's end.
    assert count["refused"] * step >= first and count["mended"] * step >= last - first - 2 * 512
    assert count["whole"] * step <= len(data) - last


@EACH
def test_every_flipped_byte_of_a_shard_is_mended_or_in_no_image(folder: Path, step: int) -> None:
    data = (folder / "a.tar").read_bytes()
    count = outcomes(folder, "a.tar", flipped(data, step, 1))
    assert count["refused"] == 0 and count["whole"] > count["mended"] > 0  # headers and padding are the larger part


@pytest.mark.long
def test_every_flipped_bit_of_an_index_is_refused(folder: Path) -> None:
    data = (folder / index_name("a.tar")).read_bytes()
    assert outcomes(folder, index_name("a.tar"), flipped(data, 1, 8)) == {"whole": 0, "mended": 0, "refused": 8 * len(data)}


def test_every_cut_of_an_index_is_refused(folder: Path) -> None:
    data = (folder / index_name("a.tar")).read_bytes()
    cuts = (data[:size] for size in range(len(data)))
    assert outcomes(folder, index_name("a.tar"), cuts) == {"whole": 0, "mended": 0, "refused": len(data)}


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_bit_of_a_manifest_is_refused_or_in_a_note(folder: Path, step: int) -> None:
    data = (folder / MANIFEST).read_bytes()
    count = outcomes(folder, MANIFEST, flipped(data, step, 8))
    assert count["mended"] == 0 and count["refused"] > 8 * len(data) // step * 0.9


def test_every_cut_of_a_manifest_is_refused(folder: Path) -> None:
    data = (folder / MANIFEST).read_bytes().rstrip()
    cuts = (data[:size] for size in range(len(data)))
    assert outcomes(folder, MANIFEST, cuts) == {"whole": 0, "mended": 0, "refused": len(data)}


@pytest.mark.long
def test_a_cut_tar_is_noticed_while_it_is_indexed(folder: Path) -> None:
    """Unless only zeros behind its end are lost; and a refusal leaves no index. `test_tar` has each cut of the scanner."""
    data, wanted = (folder / "a.tar").read_bytes(), load_manifest(str(folder)).fingerprint
    own = [folder / MANIFEST, folder / index_name("a.tar")]
    for size in [*range(0, len(data) - 512, 13), len(data) - 513]:
        (folder / "a.tar").write_bytes(data[:size])
        for path in own:
            path.unlink(missing_ok=True)
        with pytest.raises(DataError, match=r"a\.tar (is damaged \(it ends in the middle|has 0 bytes)"):
            index(folder)
        assert not any(path.exists() for path in own)
    (folder / "a.tar").write_bytes(data[:-512])  # one block of zeros is an end
    index(folder)
    assert load_manifest(str(folder)).fingerprint != wanted  # the size is part of it
    assert len(read(folder)) == SAMPLES
