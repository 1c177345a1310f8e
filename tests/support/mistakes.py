"""What a mistake of the user's is told: the only line of a command, or of a configuration."""

import pytest

from jobs.cli import main
from pipeline.config import load_config
from pipeline.errors import ConfigError


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Exit code and the only line on stderr of a command that must fail."""
    code = main(argv)
    (line,) = capsys.readouterr().err.splitlines()
    return code, line


def message(source: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    assert caught.value.exit_code == 78
    assert "\n" not in str(caught.value)
    return str(caught.value)
