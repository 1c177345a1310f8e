"""Damaged tars, without end, for the scanner: each must be refused, or be read as Python's tarfile reads it. No crash, no hang.

    python -m benchmarks.fuzz_tar --seconds 600 --seed 0

Tars of random small files in every format are cut, and have bytes changed, blocks removed, repeated, exchanged or zeroed.
What is read must begin with tarfile's members (which stops at damage without a word), byte for byte. A long name has no
checksum in a tar: where one was damaged, each reads something, and the table counts it.
"""

import argparse
import contextlib
import io
import random
import tarfile
import time
from collections import Counter

from benchmarks.support.report import report
from pipeline.data.tar import BLOCK, TarError, members

_FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def _tar(rng: random.Random) -> bytearray:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=rng.choice(_FORMATS)) as tar:
        for i in range(rng.randint(0, 5)):
            info = tarfile.TarInfo("d/" * rng.choice([0, 1, 40]) + f"{i}{'n' * rng.choice([0, 20, 80])}.jpg")
            data = rng.randbytes(rng.choice([0, 1, 511, 512, 513, 2000]))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return bytearray(out.getvalue())


def damage(data: bytearray, rng: random.Random) -> str:
    """Change a tar in place; returns how."""
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


def _ours(data: bytes, step: int) -> list[tuple[str, bytes]] | None:
    try:
        return [(m.name, m.data or b"") for m in members(data[i : i + step] for i in range(0, len(data), step))]
    except TarError:
        return None


def _theirs(data: bytes) -> list[tuple[str, bytes]]:
    """What tarfile finds before it stops."""
    found = []
    errors = contextlib.suppress(tarfile.TarError, ValueError, OSError, IndexError)
    with errors, tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            if member.isreg() and not member.issparse():
                content = tar.extractfile(member)
                found.append((member.name, content.read() if content else b""))
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, began, slowest = random.Random(args.seed), time.monotonic(), 0.0
    refused: Counter[str] = Counter()
    read: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    names: Counter[str] = Counter()
    while time.monotonic() - began < args.seconds:
        data = _tar(rng)
        kind = damage(data, rng)
        start = time.monotonic()
        found = _ours(bytes(data), rng.choice([1 << 16, 700, 37]))
        slowest = max(slowest, time.monotonic() - start)
        if found is None:
            refused[kind] += 1
            continue
        read[kind] += 1
        theirs = _theirs(bytes(data))
        found = found[: len(theirs)]
        wrong[kind] += [content for _, content in theirs] != [content for _, content in found]
        names[kind] += theirs != found
    rows = [
        {"damage": kind, "refused": refused[kind], "read": read[kind], "other data": wrong[kind], "other names": names[kind]}
        for kind in sorted(read)
    ]
    figures = {"seed": args.seed, "tars": sum(refused.values()) + sum(read.values()), "slowest_seconds": round(slowest, 3)}
    report("fuzz_tar", rows, figures, not wrong.total() and not names["nothing"] and not refused["nothing"] and slowest < 5)


if __name__ == "__main__":
    main()
