"""How workers ended, read from what they have said: the first exception is the cause, and the line that is printed."""

from pathlib import Path

import pytest

from pipeline.cluster.outcome import JOINED, RANKING, first_cause, outcome
from pipeline.runs.run_folder import RunState

LOG = Path("run/logs/stderr.log")


def trace(error: str, rank: str = "", *more: str) -> str:
    rows = ["Traceback (most recent call last):", '  File "a.py", line 1, in <module>', "    import b", "", error, *more]
    return "".join(f"{rank}{row}\n" for row in rows)


LAUNCHER = trace("torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ", "", "=====", "train FAILED")
PEER = trace("RuntimeError: [../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:5000", "[rank1]: ")


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (trace("ModuleNotFoundError: No module named 'b'") + LAUNCHER, "ModuleNotFoundError: No module named 'b'"),
        (PEER + trace("ValueError: a: b", "[rank0]: ") + LAUNCHER, "ValueError: a: b"),
        (trace("KeyError: 'RANK'", "[rank0]: ") + trace("TypeError: later"), "KeyError: 'RANK'"),
        (
            trace("OSError: first") + "During handling of the above exception, another\n" + trace("KeyError: 2"),
            "OSError: first",
        ),
        (
            "W1 a warning\n" + LAUNCHER + "  traceback : Signal 9 (SIGKILL) received by PID 77\n",
            "process 77 was killed by SIGKILL",
        ),
        ("usage: launch\nlaunch.py: error: unrecognized arguments: --x\n", "launch.py: error: unrecognized arguments: --x"),
        (PEER + LAUNCHER, "RuntimeError: [../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:5000"),
        (trace("b.CustomError", "[rank12]: ", "more of it"), "b.CustomError"),
        ("Traceback (most recent call last):\n", ""),
        ("some lines\nwithout an error\n", ""),
        ("", ""),
    ],
)
def test_the_first_exception_is_the_cause(said: str, line: str) -> None:
    found = first_cause(said)
    assert found.line.startswith(line) and bool(found.line) == bool(line)
    assert not found.trace or found.trace.splitlines()[-1] in said


@pytest.mark.parametrize(
    ("error", "again"),
    [
        ("ModuleNotFoundError: No module named 'b'", "the same command fails again until this is fixed"),
        ("json.decoder.JSONDecodeError: Expecting value", "the same command resumes from the last checkpoint"),
        ("RuntimeError: CUDA error: unspecified launch failure", "the same command resumes from the last checkpoint"),
    ],
)
def test_the_line_names_the_cause_and_says_whether_to_try_again(error: str, again: str) -> None:
    end = outcome(Path("run"), LOG, JOINED, code=1, said=trace(error) + LAUNCHER, dumps=[])
    assert (end.state, end.exit_code) == ("crashed", 1)
    assert end.message.startswith(f"the workers failed: {error}; see {LOG}; {again}")


def test_what_was_said_counts_only_where_there_is_no_status() -> None:
    stopped, said = RunState("stopped", 64, 75, "SIGTERM"), trace("ValueError: x")
    assert outcome(Path("run"), LOG, stopped, code=1, said=said, dumps=[]) == stopped
    assert outcome(Path("run"), LOG, RunState("running", 64), code=1, said=said, dumps=[]).images == 64
    for end in (None, JOINED):
        assert outcome(Path("run"), LOG, end, code=-15, said=said, dumps=[]).state == "interrupted"
    assert outcome(Path("run"), LOG, None, code=3, said="", dumps=[]).message.startswith(
        "the workers ended without a result (launcher's exit code 3); see run/logs/stderr.log; the same command resumes"
    )


def test_of_several_nodes_the_one_with_the_cause_has_the_word() -> None:
    cause = outcome(Path("run"), LOG, None, code=1, said=trace("ValueError: x"), dumps=[])
    torn = [
        outcome(Path("run"), LOG, JOINED, code=1, said=PEER + LAUNCHER, dumps=[]),
        outcome(Path("run"), LOG, None, code=-9, said="", dumps=[], deserted=True),
    ]
    assert torn[0].message.startswith("another worker ended first, without saying why, and these lost it: RuntimeError: ")
    interrupted = outcome(Path("run"), LOG, None, code=-15, said="", dumps=[])
    ranked = sorted([*torn, interrupted, cause], key=lambda end: RANKING.index(end.state))
    assert ranked == [cause, interrupted, *torn]
