import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset.writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.tar import TarError, members


def written(files: list[tuple[str, bytes]], form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read(data: bytes, step: int = 1 << 16) -> list[tuple[str, int, int, bytes | None]]:
    chunks: Iterator[bytes] = (data[i : i + step] for i in range(0, len(data), step))
    return [(m.name, m.offset, m.size, m.data) for m in members(chunks)]


def by_tarfile(data: bytes) -> list[tuple[str, int, int, bytes | None]]:
    with tarfile.open(fileobj=io.BytesIO(data), errorlevel=2) as tar:
        found = [m for m in tar.getmembers() if m.isreg()]
        return [(m.name, m.offset_data, m.size, tar.extractfile(m).read()) for m in found]  # type: ignore[union-attr]


NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=300).map(
    lambda name: name.strip(".") or "x"
)
FILES = st.lists(st.tuples(NAMES, st.binary(max_size=1200)), max_size=5)


@settings(max_examples=60)
@given(FILES, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.integers(1, 2000))
def test_members_are_those_that_tarfile_finds(files: list[tuple[str, bytes]], form: int, step: int) -> None:
    data = written(files, form)
    assert read(data, step) == by_tarfile(data)
    assert [(name, content) for name, _, _, content in read(data)] == files


def test_ustar_prefixes_and_other_kinds(tmp_path: Path) -> None:
    long = "/".join(["folder"] * 20) + "/name.jpg"
    data = written([(long, b"1234"), ("b.cls", b"")], tarfile.USTAR_FORMAT)
    assert read(data) == by_tarfile(data) and read(data)[0][0] == long
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"x{kind.decode()}")
            info.type, info.linkname = kind, "y"
            tar.addfile(info)
        info = tarfile.TarInfo("last")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert [name for name, *_ in read(out.getvalue())] == ["last"]


@pytest.mark.parametrize("form", ["ustar", "gnu", "pax", "v7"])
def test_what_the_tar_command_writes(tmp_path: Path, form: str) -> None:
    names = ["a.jpg", "ü.cls", ("n" * 90 + "/") * (1 if form == "v7" else 2) + "b.png"]
    if form == "v7":
        names[2] = "n" * 90 + "/b.png"
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 50)
    done = subprocess.run(["tar", f"--format={form}", "-cf", "-", *names], cwd=tmp_path, capture_output=True, check=True)
    assert read(done.stdout) == by_tarfile(done.stdout)
    assert [name for name, *_ in read(done.stdout)] == names


def test_what_webdataset_writes() -> None:
    out = io.BytesIO()
    with webdataset.writer.TarWriter(out) as tar:
        for i in range(5):
            tar.write({"__key__": f"s{i}", "jpg": b"x" * i, "cls": i})
    assert read(out.getvalue()) == by_tarfile(out.getvalue())


def test_sizes_in_base_256_and_in_pax_records() -> None:
    info = tarfile.TarInfo("big")
    info.size = 1 << 34
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        header = info.tobuf(form)
        with pytest.raises(TarError, match="ends in the middle of big"):
            read(header + bytes(1000))


def test_unwanted_data_pass_by() -> None:
    data = written([("a", b"1" * 3000), ("b", b"2" * 3000)], tarfile.GNU_FORMAT)
    found = list(members([data], lambda name, size: name == "b" and size == 3000))
    assert [(m.name, m.data) for m in found] == [("a", None), ("b", b"2" * 3000)]


SMALL = written([("a.cls", b"3"), ("a.jpg", b"picture" * 30), ("n" * 120 + ".jpg", b"y" * 513)], tarfile.PAX_FORMAT)


@pytest.mark.long
def test_every_cut_is_an_error_unless_only_padding_is_lost() -> None:
    whole = read(SMALL)
    end = whole[-1][1] + 1024  # behind the last member's blocks
    for size in range(len(SMALL)):
        if size < end + 512:
            with pytest.raises(TarError, match="ends in the middle"):
                read(SMALL[:size])
        else:
            assert read(SMALL[:size]) == whole


@pytest.mark.long
def test_every_flipped_byte_is_an_error_or_in_data() -> None:
    """A header has its checksum, the rest has to be right by the index's: what is read stands where it stood."""
    whole = read(SMALL)
    for place in range(len(SMALL)):
        data = bytearray(SMALL)
        data[place] ^= 0x55
        try:
            found = read(bytes(data))
        except TarError:
            continue
        if [m[:3] for m in found] != [m[:3] for m in whole]:  # names in pax records have no checksum of their own
            assert place < whole[-1][1] and [m[1:] for m in found] == [m[1:] for m in whole], place


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_bytes_crash_it(data: st.DataObject) -> None:
    """Anything: random blocks, or a tar with some bytes changed. An error, or what tarfile reads."""
    if data.draw(st.booleans()):
        content = bytearray(data.draw(st.binary(max_size=3000)))
    else:
        content = bytearray(written(data.draw(FILES), tarfile.GNU_FORMAT))
        for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)):
            content[place] = value
    try:
        found = read(bytes(content))
    except TarError:
        return
    assert sum(size for _, _, size, _ in found) <= len(content)
