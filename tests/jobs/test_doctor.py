import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.doctor.data import Findings
from tests.support.mistakes import refusal

FOUND = Findings(
    image_bytes=20_000,
    latency=0.02,
    request=0.03,
    store=900,
    tar=200_000,
    decode_one=1500,
    decode=2800,
    threads=2,
    cores=16,
    whole=880,
    wanted=None,
)


@pytest.mark.parametrize(
    ("found", "bound", "advice"),
    [
        (FOUND, "latency", "waits 20 ms for its first byte"),
        (replace(FOUND, latency=0.002), "bandwidth", "gives 18 MB/s"),
        (replace(FOUND, store=9000), "decode", "2 threads decode 2,800 images/s, one 1,500, and there are 16 cores"),
        (replace(FOUND, store=9000, cores=2), "decode", "all 2 cores decode"),
        (replace(FOUND, store=9000, tar=2000), "tar", "pack them as JPEG"),
        (replace(FOUND, wanted=500), "consumer", "880 images/s, more than the 500"),
        (replace(FOUND, wanted=1000), "latency", "first byte"),
    ],
)
def test_what_is_slowest_bounds(found: Findings, bound: str, advice: str) -> None:
    assert found.bound == bound and advice in found.advice


@pytest.mark.long
def test_the_doctor_reads_and_says_what_bounds(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--data", str(shards), "--seconds", "0.5"]) == 0
    text = capsys.readouterr().out
    assert "256 images" in text and "bound by" in text
    assert main(["doctor", "--data", str(shards), "--seconds", "0.5", "--want", "0.1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bound"] == "consumer" and found["whole"] > 0 and found["store"] > 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [([], "--data"), (["--data", "nowhere"], "no shards at nowhere"), (["--data", "x", "--seconds", "0"], "--seconds 0")],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], argv: list[str], says: str) -> None:
    code, line = refusal(capsys, "doctor", *argv)
    assert code == 78 and says in line
