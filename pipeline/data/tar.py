"""The members of a tar, from a stream of bytes, in one pass: ustar, GNU (long names, large sizes) and pax.

Python's tarfile takes a cut between two members, a damaged header or a zeroed one for the end of the archive. Here any of
them is an error that says where: an archive ends with a block of zeros, and nothing but zeros behind it.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

BLOCK = 512
_MAX_NAME = 1 << 20  # of a long name or a pax header; more is damage
_FILES, _NOTHING = b"0\0" + b"7", b"123456"  # with data; links, devices, folders, pipes: without
_KINDS = {b"1": "link", b"2": "link", b"5": "folder"}


class TarError(ValueError):
    """The stream is no whole tar; the message says at which byte."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A regular file, or what else a tar holds."""

    name: str
    offset: int
    """Of its first byte in the tar."""
    size: int
    data: bytes | None
    """None if it was not wanted."""
    kind: str = "file"
    """file, link, folder or device."""
    target: str = ""
    """Of a link: the name that it points to."""


def members(
    chunks: "Iterable[bytes] | FileStream", wanted: Callable[[str, int], bool] = lambda name, size: True, *, every: bool = False
) -> Iterator[Member]:
    """Yield the regular files of a tar that comes as `chunks`, in their order.

    Args:
        chunks: consecutive bytes of the tar, cut anywhere; or where it lies in a file.
        wanted: says by name and size whether a member's data are to be collected; otherwise they pass by.
        every: yield links, folders and devices too, without data.

    Raises TarError where the tar is damaged, cut, or of a kind that has no place in a data set (sparse, multi-volume).
    """
    stream = chunks if isinstance(chunks, FileStream) else _Stream(chunks)
    extended: dict[bytes, bytes] = {}  # from the headers in front of a member: its pax records, or a GNU long name
    shared: dict[bytes, bytes] = {}  # pax records for all that follow
    while True:
        start = stream.offset
        header = stream.take(BLOCK, "a header")
        if header.count(0) == BLOCK:
            stream.only_zeros()
            return
        _check(header, start)
        kind, size = header[156:157], _number(header[124:136], start)
        if kind in (b"x", b"g", b"L", b"K"):
            if size > _MAX_NAME:
                raise TarError(f"the header at byte {start} claims a name of {size} bytes")
            text = stream.take(size, "a name")
            stream.skip(-size % BLOCK)
            if kind in b"LK":
                long, _, rest = text.partition(b"\0")
                if not long or rest.strip(b"\0") or kind in extended:
                    raise TarError(f"the long name at byte {start} is damaged")
                extended[kind] = long
            else:
                (shared if kind == b"g" else extended).update(_records(text, start))
                if b"size" in shared:
                    raise TarError(f"the header at byte {start} gives all members one size")
            continue
        records, extended = shared | extended, {}
        name = _text(records.get(b"path") or records.get(b"L") or _name(header))
        if kind in _NOTHING or (kind == b"\0" and header[:100].rstrip(b"\0").endswith(b"/")):
            if every:
                target = records.get(b"linkpath") or records.get(b"K") or header[157:257].split(b"\0")[0]
                what = _KINDS.get(kind, "folder" if kind == b"\0" else "device")
                yield Member(name=name, offset=stream.offset, size=0, data=None, kind=what, target=_text(target))
            continue
        if kind not in _FILES or any(key.startswith(b"GNU.sparse") for key in records):
            raise TarError(f"the member at byte {start} is of type {kind.decode('latin-1')!r} or sparse: write plain files")
        if b"size" in records:
            size = _decimal(records[b"size"], start)
        if not name:
            raise TarError(f"the member at byte {start} has no name")
        offset = stream.offset
        data = stream.take(size, name) if wanted(name, size) else None
        if data is None:
            stream.skip(size, name)
        stream.skip(-size % BLOCK, name)
        yield Member(name=name, offset=offset, size=size, data=data)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def header_name(block: bytes) -> str:
    """Return the member's name in a header of 512 bytes; "" where the block is none, as its checksum tells."""
    if len(block) < BLOCK:
        return ""
    try:
        _check(block, 0)
        return _name(block).decode()
    except (TarError, UnicodeDecodeError):
        return ""


class _Stream:
    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = memoryview(b"")
        self.offset = 0

    def take(self, size: int, what: str) -> bytes:
        parts = []
        while size:
            if not len(self._buffer):
                chunk = next(self._chunks, None)
                if chunk is None:
                    raise TarError(f"it ends in the middle of {what}, at byte {self.offset}")
                self._buffer = memoryview(chunk)
                continue
            part = self._buffer[:size]
            self._buffer = self._buffer[len(part) :]
            parts.append(part)
            self.offset += len(part)
            size -= len(part)
        return b"".join(parts)

    def skip(self, size: int, what: str = "a member") -> None:
        while size:
            size -= len(self.take(min(size, 1 << 20), what))

    def only_zeros(self) -> None:
        for chunk in (self._buffer, *self._chunks):
            if bytes(chunk).count(0) != len(chunk):
                raise TarError(f"there are bytes behind its end, at byte {self.offset}")
            self.offset += len(chunk)


class FileStream:
    """Bytes [start, start + length) of an open file. What is passed by is not read."""

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        self._descriptor, self._start, self._length = descriptor, start, length
        self.offset = 0

    def take(self, size: int, what: str) -> bytes:
        """Return the next `size` bytes. Raises TarError where the file or the part ends before."""
        self.skip(size, what)
        data = os.pread(self._descriptor, size, self._start + self.offset - size)
        if len(data) < size:
            raise TarError(f"it ends in the middle of {what}, at byte {self.offset - size + len(data)}")
        return data

    def skip(self, size: int, what: str = "a member") -> None:
        """Pass by `size` bytes."""
        if self.offset + size > self._length:
            raise TarError(f"it ends in the middle of {what}, at byte {self._length}")
        self.offset += size

    def only_zeros(self) -> None:
        """Do nothing: what follows the end of a tar that nobody reads through is not looked at."""


def _check(header: bytes, start: int) -> None:
    stored = _number(header[148:156], start)
    blanked = header[:148] + b" " * 8 + header[156:]
    if stored not in (sum(blanked), sum(byte - 256 if byte > 127 else byte for byte in blanked)):
        raise TarError(f"the header at byte {start} does not have its checksum")


def _number(field: bytes, start: int) -> int:
    """Octal digits, or (GNU) base 256 behind a byte of 128."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.split(b"\0")[0].strip()
    try:
        if not digits.isdigit() and digits:
            raise ValueError
        return int(digits or b"0", 8)
    except ValueError:
        raise TarError(f"the header at byte {start} has no number where one belongs") from None


def _decimal(text: bytes, start: int) -> int:
    if not text.isdigit() or len(text) > 18:
        raise TarError(f"the header in front of byte {start} has no number where one belongs")
    return int(text)


def _name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0")[0], b""
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0")[0]
    return prefix + b"/" + name if prefix else name


def _records(text: bytes, start: int) -> Iterator[tuple[bytes, bytes]]:
    """pax records: length, a space, key=value and a newline, the length counting all of it."""
    while text:
        length, space, _ = text.partition(b" ")
        size = _decimal(length, start) if space else 0
        record = text[len(length) + 1 : size]
        key, equals, value = record[:-1].partition(b"=")
        if size > len(text) or not record.endswith(b"\n") or not equals:
            raise TarError(f"the pax header at byte {start} is damaged")
        yield key, value
        text = text[size:]
