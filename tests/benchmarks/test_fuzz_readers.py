"""Damaged files and answers end in silence or in one line; and the harness that says so finds the faults that are planted."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks import fuzz_readers
from benchmarks.support import workers
from benchmarks.support.fuzz import tries as fuzz_tries
from benchmarks.support.fuzz.tries import Reader, fuzz
from pipeline.errors import DataError

QUICK = ["run-status", "run-report", "run-restarts", "run-prepare", "run-start", "run-fence", "server-samples", "server-ranges"]
GOOD = '{"a": {"b": 1}}'


def found_by(log: Path, readers: list[str], tries: int, seed: int) -> dict[str, object]:
    words = ["--tries", str(tries), "--seed", str(seed), *(word for name in readers for word in ("--reader", name))]
    workers.run(fuzz_readers.main, words, ranks=1, log=log)
    last: dict[str, object] = json.loads(log.read_text().splitlines()[-1])
    return last


@pytest.mark.long
def test_files_of_runs_and_answers_of_servers_end_in_one_line(tmp_path: Path) -> None:
    found = found_by(tmp_path / "log", QUICK, tries=3, seed=100)
    assert found["ok"] and found["tries"] == 3 * len(QUICK), found["failures"]


@pytest.mark.slow
def test_every_reader_ends_in_one_line(tmp_path: Path) -> None:
    found = found_by(tmp_path / "log", [], tries=2, seed=200)
    assert found["ok"] and found["tries"] == 2 * len(fuzz_readers.ALL), found["failures"]


def key(folder: Path) -> None:
    json.loads((folder / "a.json").read_text(errors="replace"))["a"]["b"]


def memory(folder: Path) -> None:
    len(b"\1" * (300 << 20))


def claimed(folder: Path) -> None:
    if _damaged(folder):
        try:
            bytearray(16 << 30)
        except MemoryError:
            raise DataError("more than there is") from None


def _damaged(folder: Path) -> bool:
    return not (folder / "a.json").is_file() or (folder / "a.json").read_text(errors="replace") != GOOD


def killed(folder: Path) -> None:
    if _damaged(folder):
        os.kill(os.getpid(), signal.SIGSEGV)


def hangs(folder: Path) -> None:
    if _damaged(folder):
        time.sleep(60)


def two_lines(folder: Path) -> None:
    if _damaged(folder):
        error = DataError("one line, as each is made")
        error.args = ("one\ntwo",)
        raise error


def refuses_its_own(folder: Path) -> None:
    raise DataError("no")


PLANTED = {
    key: "Error at tests/benchmarks/test_fuzz_readers.py",
    memory: "takes more than 10 x its files + 200 MiB",
    claimed: "asks for memory that a header claims",
    killed: "died with -11",
    hangs: "_HangError",
    two_lines: "a message of more than one line",
    refuses_its_own: "its own files, undamaged: DataError",
}


def _plant(folder: str, out: str) -> None:
    failures = {}
    for read in PLANTED:
        fuzz_tries.SECONDS = 0.3 if read is hangs else 30.0
        outcome = fuzz(Reader(read.__name__, "seeds", ("a.json",), read), Path(folder), 0, 3, float("inf"))
        failures[read.__name__] = [(seed, what) for seed, what, _ in outcome.failures]
        for seed, what, _ in outcome.failures[:1]:  # the seed alone shows it again
            (again,) = fuzz(Reader(read.__name__, "seeds", ("a.json",), read), Path(folder), seed, 1, 0).failures
            assert again[:2] == (seed, what)
    Path(out).write_text(json.dumps(failures))


@pytest.mark.long
def test_planted_faults_are_found_with_the_seed_that_shows_them(tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "a.json").write_text(GOOD)
    workers.run(_plant, str(tmp_path), str(tmp_path / "out"), ranks=1, log=tmp_path / "log")
    found = json.loads((tmp_path / "out").read_text())
    for read, words in PLANTED.items():
        assert any(words in what for _, what in found[read.__name__]), (read.__name__, found[read.__name__])
