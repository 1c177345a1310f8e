"""Damage real files as an accident or an attacker would. All of it follows from a `random.Random`."""

import gzip
import io
import json
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.data.tar import BLOCK

NUMBERS = (
    0,
    1,
    -1,
    127,
    255,
    65535,
    1 << 24,
    (1 << 31) - 1,
    -(1 << 31),
    (1 << 32) - 1,
    (1 << 63) - 1,
    -(1 << 63),
    (1 << 64) - 1,
)
"""For the fields of a header, and for JSON."""

_ODD: tuple[Any, ...] = (
    *(None, True, False, "", "x", "../x", "/dev/zero", "http://127.0.0.1:1/", "\ud800", "\0", "\x1b[31m\n", "9" * 5000),
    *([], {}, [[]], {"": None}, 1.5, -0.0, 1e308, float("nan"), float("inf"), 10**400, [0] * 1000, *NUMBERS),
)


def damage_folder(folder: Path, names: Sequence[str], rng: random.Random) -> str:
    """Change one or two of the files `names` in `folder`; return what was done."""
    said = []
    for name in rng.sample(names, min(len(names), rng.choice((1, 1, 1, 2)))):
        path, kind = folder / name, rng.choice(("content",) * 16 + ("empty", "gone", "folder", "other", "blank"))
        if not path.is_file():
            continue
        if kind == "content":
            path.write_bytes(damage(path.read_bytes(), name, rng))
        elif kind == "other":
            shutil.copyfile(folder / rng.choice(names), path.with_name("other.tmp"))
            path.with_name("other.tmp").replace(path)
        elif kind == "blank":  # as a power cut leaves it
            path.write_bytes(bytes(path.stat().st_size))
        else:
            path.unlink()
            if kind == "folder":
                path.mkdir()
            elif kind == "empty":
                path.touch()
        said.append(f"{kind} {name}")
    return ", ".join(said)


def damage(data: bytes, name: str, rng: random.Random) -> bytes:
    """Return other bytes in place of the file `name`: of its format, mostly, and of any, at times."""
    forms = [form for endings, form in _FORMS.items() if name.endswith(endings)]
    if forms and rng.random() < 0.75:
        try:
            return forms[0](data, rng)
        except Exception:  # whatever its format's parser says of a file that an earlier change has spoilt
            pass
    return _bytes(data, rng)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 5))):
        place, length = _place(len(found), rng), rng.choice((1, 2, 4, 16, 200))
        kind = rng.choice(("flip", "byte", "cut", "remove", "insert", "repeat", "move", "number", "zero"))
        if kind == "flip":
            found[place] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            found[place] = rng.randrange(256)
        elif kind == "cut":
            del found[place:]
        elif kind == "remove":
            del found[place : place + length]
        elif kind == "insert":
            found[place:place] = rng.randbytes(length)
        elif kind == "repeat":
            found[place:place] = found[place : place + length] * rng.choice((1, 2, 50))
        elif kind == "move":
            source = _place(len(found), rng)
            found[place : place + length] = found[source : source + length]
        elif kind == "number":
            found[place : place + 8] = _number(rng)
        else:
            found[place : place + length] = bytes(len(found[place : place + length]))
        if not found:
            break
    return bytes(found)


def _place(length: int, rng: random.Random) -> int:
    """Return an offset: half of all are in the first or last 64 bytes, where formats have their headers."""
    where = rng.random()
    if where < 0.35:
        return rng.randrange(min(length, 64))
    return length - 1 - rng.randrange(min(length, 64)) if where < 0.5 else rng.randrange(length)


def _number(rng: random.Random) -> bytes:
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    return (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, order)  # type: ignore[arg-type]


def _json(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.08:
        return rng.choice(
            (b"[" * 100_000, b'{"a":' * 50_000 + b"1", b"9" * 5000, b"\xff\xfe", b"\xef\xbb\xbf" + data, data + data)
        )
    tree = json.loads(data)
    return json.dumps(_tree(tree, rng)).encode()


def _lines(data: bytes, rng: random.Random) -> bytes:
    """Of JSON, one a line."""
    lines = data.splitlines(keepends=True)
    if lines:
        i = rng.randrange(len(lines))
        lines[i] = _json(lines[i], rng) + b"\n"
        if rng.random() < 0.2:
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"".join(lines)


def _yaml(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.08:
        return rng.choice((b"[" * 20_000, b"a: &a [*a]\n", b"!!python/object:os.system x\n", b"\t- : x", b"? [a]\n: b\n"))
    return yaml.safe_dump(_tree(yaml.safe_load(data), rng), allow_unicode=True).encode(errors="surrogatepass")


def _tree(tree: Any, rng: random.Random) -> Any:
    """`tree` with one or a few values of other types or sizes, and keys that are missing or new."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        path: list[tuple[Any, Any]] = []
        node = tree
        while isinstance(node, dict | list) and node and (not path or rng.random() < 0.85):
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            path.append((node, key))
            node = node[key]
        if not path:
            return rng.choice(_ODD)
        parent, key = path[-1]
        kind = rng.choice(("odd", "odd", "odd", "number", "remove", "nest", "repeat", "key"))
        if kind == "remove":
            del parent[key]
        elif kind == "nest":
            parent[key] = [parent[key]]
        elif kind == "number" and type(node) in (int, float):
            parent[key] = rng.choice((-node, node + 1, node * 1000, float(node), str(node), rng.choice(NUMBERS)))
        elif kind == "repeat" and isinstance(parent, list):
            parent[key:key] = [parent[key]] * rng.choice((1, 3))
        elif kind == "key" and isinstance(parent, dict):
            parent[rng.choice(("", "\ud800", "a b", "__class__", "9" * 300))] = parent.pop(key)
        else:
            parent[key] = rng.choice(_ODD)
    return tree


def _gz(data: bytes, rng: random.Random) -> bytes:
    inside = gzip.decompress(data)
    return gzip.compress(damage(inside, ".tar" if inside[257:262] == b"ustar" else "", rng), 1)


def _zip(data: bytes, rng: random.Random) -> bytes:
    """One member changed, with sums that are right again; or told to be packed, or to be as long, otherwise."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        infos = old.infolist()
        chosen = rng.randrange(len(infos))
        for i, info in enumerate(infos):
            content = old.read(info)
            new.writestr(info.filename, damage(content, info.filename, rng) if i == chosen else content)
    found = bytearray(out.getvalue())
    if rng.random() < 0.3:
        field = rng.choice((4, 6, 8, 10, 16, 20, 24, 28, 30, 32, 34, 42))  # of the central directory's records
        place = found.rfind(b"PK\1\2") + field
        found[place : place + 4] = struct.pack("<I", rng.choice(NUMBERS) % (1 << 32))
    return bytes(found)


def _tar(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    damage_tar(found, rng)
    return bytes(found)


def _png(data: bytes, rng: random.Random) -> bytes:
    """Another header, or another chunk, whose sum is right again."""
    found, place = bytearray(data), 8
    if rng.random() < 0.5:
        at = 16 + 4 * rng.randrange(2)
        found[at : at + 4] = struct.pack(">I", rng.choice((0, 1, 33, 10_000, 65_500, 1 << 31)))
    else:
        found[24 + rng.randrange(5)] = rng.randrange(256)
    length = int.from_bytes(found[place : place + 4], "big")
    end = place + 8 + length
    found[end : end + 4] = zlib.crc32(found[place + 4 : end]).to_bytes(4, "big")
    return bytes(found)


def _safetensors(data: bytes, rng: random.Random) -> bytes:
    """Another header of JSON, of the length that is said."""
    length = int.from_bytes(data[:8], "little")
    header = _json(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


_FORMS: dict[tuple[str, ...], Callable[[bytes, random.Random], bytes]] = {
    (".json", "journal.offset", "lock"): _json,
    (".jsonl", "hang.txt"): _lines,
    (".yaml",): _yaml,
    (".gz", ".tgz"): _gz,
    (".zip", ".pth", ".pt", ".bin", ".npz"): _zip,
    (".tar",): _tar,
    (".png",): _png,
    (".safetensors",): _safetensors,
}


def damage_tar(data: bytearray, rng: random.Random) -> str:
    """Change a tar in place; return how."""
    kind = rng.choice(["nothing", "cut", "bytes", "remove", "repeat", "exchange", "zero", "digits"])
    blocks = len(data) // BLOCK
    a, b = (BLOCK * rng.randrange(blocks) for _ in range(2))
    if kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "bytes":
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == "remove":
        del data[a : a + BLOCK]
    elif kind == "repeat":
        data[a:a] = data[b : b + BLOCK]
    elif kind == "exchange":
        data[a : a + BLOCK], data[b : b + BLOCK] = data[b : b + BLOCK], data[a : a + BLOCK]
    elif kind == "zero":
        data[a : a + BLOCK] = bytes(BLOCK)
    elif kind == "digits":  # a header that says something else, with a checksum that is right
        place = a + rng.choice([rng.randrange(0, 100), rng.randrange(124, 136), 156, rng.randrange(257, 500)])
        data[place] = rng.choice(b"0123456789\0 xgLKS\x80\xff")
        header = data[a : a + 148] + b" " * 8 + data[a + 156 : a + BLOCK]
        data[a + 148 : a + 156] = b"%06o\0 " % sum(header)
    return kind
