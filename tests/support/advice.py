"""Advice in messages: read out of them, compared with what the program knows, and followed as a user would.

Messages advise in four forms: `set KEY=VALUE` (several, divided by `or` and spaces), `add --flag VALUE` or `pass --flag`,
`leave out --flag` or a key, and whole commands in backticks. Words in CAPITALS are for the user to fill in.
"""

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NoReturn

import pytest

from jobs import cli
from pipeline.cluster import launch
from pipeline.config import RunConfig, _keys

_VALUE = r"""(?:"[^"]*"|'[^']*'|\[[^\]]*\]|[^\s,;:`'"()]+)"""
_SETTING = rf"(?:'[a-z_]+[\w.]*=[^']*'|[a-z][a-z0-9_]*(?:\.\w+)*={_VALUE})"
_SETTINGS = re.compile(rf"\b(?:set|type) ({_SETTING}(?:(?:,? or | and | ){_SETTING})*)")
_FLAGGED = r"--[a-z][a-z-]*(?: (?:'[^']*'|(?!or\b|and\b|to\b|if\b|here\b)[\w.:/@%{}-]+))?"
_FLAGS = re.compile(rf"\b(?:add|pass|try) ({_FLAGGED}(?:(?:, or | or |, ){_FLAGGED})*)")
_LEFT_OUT = re.compile(
    r"\bleave out ((?:--[a-z-]+|[a-z_]+(?:\.\w+)*)(?:(?:, or | or | and |, )(?:--[a-z-]+|[a-z_]+(?:\.\w+)+))*)"
)
_COMMAND = re.compile(r"`biggan ([^`]+)`")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*")


@dataclass(frozen=True)
class Advice:
    """One thing to do; all words of it together."""

    settings: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    """Flags and keys to be left out."""
    command: tuple[str, ...] = ()

    def filled(self, fills: Mapping[str, str]) -> "Advice":
        """The same with what the user fills in."""

        def fill(words: Sequence[str]) -> tuple[str, ...]:
            return tuple(re.sub(r"[A-Z][A-Z0-9_]*", lambda found: fills.get(found[0], found[0]), word) for word in words)

        return Advice(fill(self.settings), fill(self.flags), self.removed, fill(self.command))

    @property
    def concrete(self) -> bool:
        """Whether nothing is left to fill in."""
        words = (*(word.partition("=")[2] for word in self.settings), *self.flags, *self.command)
        return not any(_PLACEHOLDER.fullmatch(word) for word in words)


def advice(message: str) -> list[Advice]:
    """What `message` says to do, in its order; empty where it is for the user to think of."""
    found: list[tuple[int, Advice]] = []
    bare = _COMMAND.sub(lambda match: " " * len(match[0]), message)
    for match in _SETTINGS.finditer(bare):
        for part in re.split(r",? or ", match[1]):
            words = [word for word in shlex.split(part.replace("[", "'[").replace("]", "]'")) if "=" in word]
            found.append((match.start(), Advice(settings=tuple(words))))
    for match in _FLAGS.finditer(bare):
        for part in re.split(r",? or |, ", match[1]):
            flag, *value = shlex.split(part.rstrip("."))
            takes = any(action.nargs != 0 for action in _flags().get(flag, ()))
            found.append((match.start(), Advice(flags=(flag, *value) if takes else (flag,))))
    for match in _LEFT_OUT.finditer(bare):
        for part in re.split(r",? or ", match[1]):
            found.append((match.start(), Advice(removed=tuple(re.split(r", | and ", part)))))
    for match in _COMMAND.finditer(message):
        words = tuple(shlex.split(match[1]))
        if len(words) > 1 and "--help" not in words:  # `biggan evaluate` alone names the command, and is no advice to type it
            found.append((match.start(), Advice(command=words)))
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def wrong(message: str) -> list[str]:
    """Everything in the advice of `message` that the program would not take: unknown keys, flags and commands."""
    faults = []
    for one in advice(message):
        for setting in one.settings:
            key = setting.partition("=")[0]
            if not _known_key(key):
                faults.append(f"set {key}: no such key")
        if one.flags and one.flags[0] not in _flags():
            faults.append(f"{one.flags[0]}: no command has such a flag")
        for name in one.removed:
            if not (name in _flags() if name.startswith("--") else _known_key(name) or "." not in name):
                faults.append(f"leave out {name}: no such flag or key")
        if one.command:
            faults += _unparsable(one.command)
    for name in re.findall(r"`biggan ([a-z]+)`", message):
        if name not in cli.commands():
            faults.append(f"`biggan {name}`: no such command")
    return faults


def _known_key(key: str) -> bool:
    return any(re.fullmatch(re.escape(name).replace("NAME", r"\w+"), key) for name, _ in _keys(RunConfig))


@cache
def _parsers() -> dict[str, argparse.ArgumentParser]:
    parser = cli._parser(cli.commands())
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(actions[0].choices)


@cache
def _flags() -> dict[str, list[argparse.Action]]:
    """What each flag is to the commands that have it."""
    found: dict[str, list[argparse.Action]] = {}
    for parser in _all(_parsers().values()):
        for flag, action in parser._option_string_actions.items():
            found.setdefault(flag, []).append(action)
    return found


def _all(parsers: Iterable[argparse.ArgumentParser]) -> Iterator[argparse.ArgumentParser]:
    for parser in parsers:
        yield parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from _all(action.choices.values())


def _unparsable(words: Sequence[str]) -> list[str]:
    """Why `biggan WORDS` would be refused as a command line, placeholders standing for good values."""
    if words[0] not in _parsers():
        return [f"`biggan {words[0]}`: no such command"]
    if "..." in words:
        return []
    flags = _parsers()[words[0]]._option_string_actions
    typed = []
    for before, word in zip(["", *words], words, strict=False):
        action = flags.get(before)
        if _PLACEHOLDER.fullmatch(word) and action and (action.choices or action.type):
            word = str(next(iter(action.choices))) if action.choices else "1"
        typed.append(word)
    try:
        args, rest = cli._parser([words[0]]).parse_known_args(typed)
    except Exception as error:
        return [f"`biggan {shlex.join(words)}`: {error}"]
    odd = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(args, "overrides")]
    return [f"`biggan {shlex.join(words)}`: {' '.join(odd)} is not taken"] if odd else []


class Reached(BaseException):
    """A training would have started its workers now."""


def typed(words: Sequence[str]) -> tuple[int, str]:
    """(exit code, what is on stderr) of `biggan WORDS` in this process; 0 where a training gets as far as its workers."""

    def stop(*_: object, **__: object) -> NoReturn:
        raise Reached

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(launch, "_run", stop)
        try:
            code = cli.main(list(words))
        except Reached:
            code = 0
    lines = [line for line in said.getvalue().splitlines() if line.startswith("biggan: error: ")]
    return code, lines[-1].removeprefix("biggan: error: ") if lines else said.getvalue()


@dataclass
class Way:
    """A way through a refusal: which advice was followed, and where it led."""

    words: list[str]
    code: int
    messages: list[str] = field(default_factory=list)
    followed: list[Advice] = field(default_factory=list)


def follow(scene: Callable[[], Sequence[str]], choice: int, fills: Mapping[str, str], instead: bool = False) -> Way | None:
    """Type what `scene` sets up, then do what each refusal says, until the command is taken.

    Of the first message, advice number `choice` is taken, later the first one. With `instead`, a command that is advised does
    what the user wanted, and the refused one is not typed again. None where there are not so many. Fails if
    the same message comes twice, or if a message gives no advice to follow.
    """
    words = list(scene())
    path = Way(words, *_said(words))
    assert path.code, f"biggan {shlex.join(words)} was not refused"
    while path.code:
        ways = advice(path.messages[-1])
        number = choice if not path.followed else 0
        if not path.followed and number >= len(ways):
            assert ways, f"no advice in {path.messages[-1]!r}"
            return None
        assert ways, f"a refusal without advice after advice was followed: {path.messages}"
        one = ways[number].filled(fills)
        assert one.concrete, f"{one} of {path.messages[-1]!r} has to be filled in"
        path.followed.append(one)
        if one.command and (one.command[0] != path.words[0] or instead):
            code, message = typed(one.command)
            assert code == 0, f"{path.messages[-1]!r} says `biggan {shlex.join(one.command)}`, which says {message!r}"
            if instead:
                return path
        if one.command and one.command[0] == path.words[0]:  # it is the command itself, put right
            path.words = list(one.command)
        else:
            path.words = [*_without(path.words, one), *one.settings, *one.flags]
        code, messages = _said(path.words)
        path.code = code
        assert not messages or messages[0] not in path.messages, f"in a circle: {path.messages} then {messages}"
        path.messages += messages
    return path


def _said(words: Sequence[str]) -> tuple[int, list[str]]:
    code, message = typed(words)
    return code, [message] if code else []


def _without(words: Sequence[str], one: Advice) -> list[str]:
    """`words` without those that `one` replaces or leaves out."""
    keys = {setting.partition("=")[0] for setting in one.settings}
    left, skip = [], False
    for word in words:
        name = word.partition("=")[0]
        gone = skip or name in keys or name in one.removed or any(name.startswith(f"{key}.") for key in one.removed)
        if not (gone or word in one.flags[:1]):
            left.append(word)
        action = _parsers()[words[0]]._option_string_actions.get(word)
        skip = (word in one.flags[:1] or word in one.removed) and action is not None and action.nargs != 0
    return left
