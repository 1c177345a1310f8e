"""The command line: finding jobs, and what each way of ending looks like from a shell. Real processes throughout."""

import os
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from jobs import cli

# A job for every way of ending, found in a folder of its own beside the real ones.
_ENDINGS = """
import errno, os, sys, time
from pipeline import errors

HELP = "ends as told"
NAMED = {name: getattr(errors, name) for name in ("ConfigError", "DataError", "StorageError")}

def add_arguments(parser):
    parser.add_argument("how")
    parser.add_argument("--times", type=int, default=1)

def run(args):
    if args.how in NAMED:
        raise NAMED[args.how]("shards: there are none; pack some")
    if args.how == "full-disk":
        with open("/dev/full", "w") as file:
            file.write("x")
    if args.how == "read-only":
        open("/proc/sys/kernel/ostype", "w").write("x")
    if args.how == "bug":
        raise OSError(errno.EBADF, "Bad file descriptor")
    if args.how == "print":
        for _ in range(200_000):
            print("a line of output")
    if args.how == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    return 75 if args.how == "preempted" else None
"""


@pytest.fixture
def biggan(tmp_path: Path) -> list[str]:
    """The command `biggan`, with one more sub-command: `end`."""
    (tmp_path / "end.py").write_text(_ENDINGS)
    program = f"import sys, jobs; jobs.__path__.append({str(tmp_path)!r}); from jobs.cli import main; sys.exit(main())"
    return [sys.executable, "-c", program]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["end", "ConfigError"], 78, "shards: there are none; pack some"),
        (["end", "DataError"], 65, "shards: there are none; pack some"),
        (["end", "StorageError"], 74, "shards: there are none; pack some"),
        (["end", "full-disk"], 74, "the disk is full"),
        (["end", "read-only"], 78, "/proc/sys/kernel/ostype"),
        (["end", "x", "--tims", "2"], 78, "--tims"),
        (["end", "x", "--times", "two"], 78, "--times"),
        (["end"], 78, "how"),
        (["end", "x", "y"], 78, "unrecognized arguments: y (`biggan end --help`"),
        (["describe"], 78, "arguments are required: CONFIG (`biggan describe --help`"),
        (["describe", "big-gan-128"], 78, "no config file or preset 'big-gan-128': did you mean biggan-128?"),
        (["ennd"], 78, "did you mean `biggan end`?"),
        (["zzzzzz"], 78, "end"),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(biggan: list[str], arguments: list[str], code: int, says: str) -> None:
    done = _run([*biggan, *arguments])
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("biggan: error: ") and says in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout


def test_a_job_decides_its_exit_code(biggan: list[str]) -> None:
    assert _run([*biggan, "end", "preempted"]).returncode == 75
    assert _run([*biggan, "end", "well"]).returncode == 0


def test_a_bug_keeps_its_traceback(biggan: list[str]) -> None:
    done = _run([*biggan, "end", "bug"])
    assert done.returncode == 1 and "Traceback" in done.stderr and "Bad file descriptor" in done.stderr


def test_interrupt_is_130_without_traceback(biggan: list[str]) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A shell's background jobs ignore SIGINT, and so would this one if the tests are one of them.
    mind = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen([*biggan, "end", "wait"], text=True, **pipes, **mind) as process:  # type: ignore[call-overload]
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "biggan: interrupted\n"
        assert process.wait(timeout=30) == 130


def test_a_reader_that_leaves_early_is_no_error(biggan: list[str]) -> None:
    reading, writing = os.pipe()
    with subprocess.Popen([*biggan, "end", "print"], stdout=writing, stderr=subprocess.PIPE, text=True) as process:
        os.close(writing)
        assert os.read(reading, 6) == b"a line"
        os.close(reading)
        assert process.stderr is not None and process.stderr.read() == ""
        assert process.wait(timeout=30) == 141


def test_help_lists_every_job_and_fits_a_terminal() -> None:
    done = _run([sys.executable, "-m", "jobs.cli"])
    assert done.returncode == 0 and not done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("    ") and line.strip()]
    assert {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"cli", "__init__"} <= set(listed)
    assert max(len(line) for line in done.stdout.splitlines()) <= 100


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, contextlib, io; from jobs.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
        "print(*sorted({'torch', 'mlflow', 'deepspeed', 'accelerate', 'pydantic', 'obstore', 'fsspec'} & set(sys.modules)))"
    )
    assert _run([sys.executable, "-c", program]).stdout.strip() == ""


def test_a_command_does_not_need_the_others_to_import(biggan: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there")
    assert _run([*biggan, "end", "well"]).returncode == 0


def test_a_copy_of_the_code_that_is_not_installed_has_commands_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(cli, "version", missing)
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == "not installed\n"
