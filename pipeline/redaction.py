"""The one place that knows what a secret looks like: in an address, in a query, beside its name.

`hide_secrets` is applied where text leaves: in `UserError`, in the streams of every process (`guarded`), in the journal, pages
and tags. `holds_secret` decides which files only their owner may read (`pipeline.storage`), and what `biggan submit` refuses.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

HIDDEN = "..."
"""What stands for a secret."""
_TEXT_BYTES = 4 << 20

_PORT = r"\d{1,5}(?:[/?#<]|[,;:.'\"`)\]}]*(?:\s|$)|[\"'][,}\]:])"
_NAME = r"[^\s/?#:@\"'`,]"
# Behind //, or one / as pathlib leaves it, up to the last @: a name and a password; a name alone; a password with letters that
# an address may not have.
_USERINFO = re.compile(
    rf"(//|(?:(?<=http:)|(?<=https:))/(?!/))(?!USER:PASSWORD@)(?:{_NAME}*:(?!\s|{_PORT})[^/?#\n]*@"
    r"|(?<!abfs://)(?<!abfss://)(?<!wasb://)(?<!wasbs://)(?:[^\s/?#\"'`]|[\"'`](?![\s,;:>)\]}]|$))*@"
    rf"|{_NAME}+:(?!\s|{_PORT})[^\s<>\"`]*@)"
)
_USER = re.compile(r"(?<!http:)(?<!https:)//[^\s/?#:@]+@(?=[\w.\[-])")
# A letter of a query: punctuation and quotes are, where more of it follows.
_LETTER = r"(?:[^\s'\"`<>,;&).:]|(?:(?!;\w+=)[,;).:'])+(?=[^\s'\"`<>,;&).:]))"
_WEB_QUERY = re.compile(rf"(https?://[^\s?#'\"`<>]*\?)(?!\.\.\.(?:[\s'\"`<>,;).:]|$))(?:{_LETTER}|&|;\w+=)+", re.IGNORECASE)
_PARAMETER = re.compile(rf"(?P<before>[?&;])(?P<name>[\w.%-]{{1,80}})=(?P<value>{_LETTER}+)")
_NAMED = re.compile(
    r"(?<![\w/+.&?;-])(?P<name>[A-Za-z_][\w.-]{0,80})(?P<mark>\s?=\s?|\\?[\"']\s?[=:]\s?|\s?[=:]\s?(?=\\?[\"']))"
    r"(?:(?P<quote>\\?[\"'])(?P<quoted>[^\"'\\\n]+)|(?P<value>[^\s'\"`<>\\&;,)}\]]+))"
)
_HEADER = re.compile(
    r"(\b(?:proxy-)?authorization\\?[\"']?\s*[=:]\s*\\?[\"']?(?:(?:basic|bearer|token|digest)\s+)?)[^\s\"'\\,}]+", re.IGNORECASE
)

_WORD = re.compile(
    "keys?|secrets?|password|passwd|passphrase|passcode|pass|pwd|pw|tokens?|creds?|credentials?|sas|auth|authorization|bearer|jwt"
    "|sig|signature|dsn|cookie|connectionstring|logins?"
)
_ENDS = re.compile(".+(keys?|secrets?|password|passwd|passphrase|pass|pwd|tokens?|credentials?|signature)")
_BEGINS = re.compile("(secret|passwd|password|passphrase|apikey|accesskey|privatekey|pgpass|authtoken|credential|sastoken).+")
_PLAIN = re.compile("(mon|don|tur|hot|whis|joc|hoc|dis|hus|jer|low)keys?|(by|com|sur|tres|over|under)pass")
_PLACE = re.compile("_(FILE|PATH|DIR|SOCK)$", re.IGNORECASE)
_LOUD = re.compile(
    "secret|passw|passphrase|token|(access|account|api|private)_?key|connection_?string|pwd|credential", re.IGNORECASE
)
"""Names that mean a secret outside of a query, too, where `key=` may be anything."""
_NO_SECRET = re.compile(
    r"\.\.\.|[A-Z_]*(KEY|VALUE|PASSWORD|TOKEN|SECRET|VARIABLE|NAME)|None|null|true|false|\*+|\$\{?\w+\}?|\d{1,4}"
)


def is_secret_name(name: str) -> bool:
    """Say whether a variable or parameter of this name holds a secret: `HF_APIKEY`, `sig`, `AccountKey`; not `MONKEY`.

    Names of places, as `AWS_WEB_IDENTITY_TOKEN_FILE`, hold none.
    """
    if _PLACE.search(name):
        return False
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", parts) if word]
    joined = "_".join(words)
    return "connection_string" in joined or any(
        (_WORD.fullmatch(word) or _ENDS.fullmatch(word) or _BEGINS.fullmatch(word)) and not _PLAIN.fullmatch(word)
        for word in (part.rstrip("0123456789") for part in words)
    )


def hide_secrets(text: str) -> str:
    """Return `text` without passwords, signatures and tokens, however many and wherever in it they are.

    Hidden are the user information of addresses (`//user:password@`), the queries of web addresses, values of secret
    parameters in other addresses and after their name (`PASSWORD=...`), and what follows `Authorization:`. Idempotent.
    """
    if "=" not in text and "//" not in text and ":" not in text:
        return text
    while (hidden := _hide(text)) != text:  # what is cut out can bring together what looks like another one
        text = hidden
    return text


def holds_secret(text: str | bytes) -> bool:
    """Say whether `hide_secrets` would hide something of `text`; bytes that are long or no text hold none."""
    if isinstance(text, bytes):
        if len(text) > _TEXT_BYTES or b"\0" in text[:64]:
            return False
        text = text.decode(errors="replace")
    return hide_secrets(text) != text


def holds_value(text: str) -> bool:
    """Say whether `text` holds a password or key: a user's name alone, as in `postgresql://user@host`, is none."""
    return holds_secret(_USER.sub("//", text))


def hidden(node: Any) -> Any:
    """Return a tree of dictionaries and lists with the secrets of all its texts hidden."""
    if isinstance(node, dict):
        return {key: hidden(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [hidden(value) for value in node]
    return hide_secrets(node) if isinstance(node, str) else node


class _Guarded:
    """A text stream that hides secrets, line by line; what is flushed before its line ends is hidden as far as it goes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._begun = stream, ""

    def write(self, text: str) -> int:
        whole, end, self._begun = _split_last_line(self._begun + text)
        if end:
            self._stream.write(hide_secrets(whole + end))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        begun, self._begun = self._begun, ""
        if begun:
            self._stream.write(hide_secrets(begun))
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _split_last_line(text: str) -> tuple[str, str, str]:
    """(what comes before the last end of a line, that end, what follows it)."""
    place = max(text.rfind("\n"), text.rfind("\r"))
    return (text[:place], text[place], text[place + 1 :]) if place >= 0 else ("", "", text)


def guard() -> None:
    """From now on, whatever this process prints, logs, warns of or dies of has its secrets hidden. Nothing is guarded twice."""
    sys.stdout, sys.stderr = (
        stream if isinstance(stream, _Guarded) else cast(TextIO, _Guarded(stream)) for stream in (sys.stdout, sys.stderr)
    )


@contextmanager
def guarded() -> Iterator[None]:
    """Inside, the same."""
    before = sys.stdout, sys.stderr
    guard()
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # closed, full, or its reader has gone: for `jobs.cli` to say
                stream.flush()
        sys.stdout, sys.stderr = before


def _hide(text: str) -> str:
    text = _USERINFO.sub(r"\1", text)
    text = _WEB_QUERY.sub(rf"\1{HIDDEN}", text)
    text = _HEADER.sub(rf"\1{HIDDEN}", text)
    text = _PARAMETER.sub(_hide_parameter, text)
    return _NAMED.sub(_hide_named, text)


def _hide_parameter(found: re.Match[str]) -> str:
    before, name, value = found.groups()
    return f"{before}{name}={HIDDEN}" if is_secret_name(name) and value != HIDDEN else found[0]


def _hide_named(found: re.Match[str]) -> str:
    name, mark, quote, quoted, value = found.groups()
    if not (_LOUD.search(name) and is_secret_name(name)) or _NO_SECRET.fullmatch(quoted or value):
        return found[0]
    return f"{name}{mark}{quote or ''}{HIDDEN}"
