"""Words that many messages share: commands to be typed, counts, text without its secrets."""

import shlex

from pipeline.redaction import hide_secrets

__all__ = ["command", "hide_secrets", "plural", "printable"]


def command(*words: object) -> str:
    """Return `biggan WORDS` in backticks, quoted for a shell, so that it works as it stands: placeholders in CAPITALS."""
    return f"`biggan {shlex.join(map(str, words))}`"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return "1 image", "2 images" or "1,000 images"; `many` is the plural where it is not `noun` with an s."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def printable(text: str) -> str:
    """Return `text` in one line that a terminal only prints: control characters, line breaks and surrogates are escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
