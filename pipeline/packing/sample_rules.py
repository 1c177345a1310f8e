"""One sample of a tar that another program wrote: what of it is the image, what the label, and what is wrong with it."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import google_crc32c

from pipeline import storage
from pipeline.data.decode import UndecodableError, looked_at
from pipeline.data.tar import BLOCK, Member
from pipeline.errors import ConfigError, DataError, UserError

IMAGES = ("jpg", "jpeg", "jfif", "png", "webp", "avif")
_SHOWN = 8  # extensions that a message lists

NO_IMAGE, NO_LABEL = "without image", "without label"
BAD_IMAGE, BAD_LABEL = "with a broken image", "with an unusable label"
ONE_KEY = "write the shard again with one key for each sample"


class Unusable(Exception):
    """A sample or a shard cannot be used.

    Args:
        kind: for counts, as in "3 samples KIND".
        reason: what is wrong; the message is "SHARD, sample KEY REASON: ADVICE".
        advice: what to do.
        error: the UserError whose exit code fits.
    """

    def __init__(self, kind: str, reason: str, advice: str = "", error: type[UserError] = DataError) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.advice, self.error = kind, reason, advice, error


class SampleFault(NamedTuple):
    """A sample or a whole shard that cannot be used."""

    shard: str
    key: str
    """Of the sample; empty for a shard."""
    kind: str
    """For counts: "3 samples KIND", "1 shard KIND"."""
    reason: str
    advice: str = ""
    error: type[UserError] = DataError
    """Whose exit code fits."""
    members: int = 0
    """Files of the sample."""

    def line(self, folder: str) -> str:
        """Return the message, without the advice."""
        place = storage.join(folder, self.shard)
        return f"{place}, sample {self.key} {self.reason}" if self.key else f"{place} {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What in a sample is its image, and what its label; and what to do about faults."""

    label: str | None = None
    """cls, json:PATH, name, name:REGEX or none; None: cls if there is one."""
    image: str | None = None
    """Extension of the image; None: the one of `IMAGES`."""
    classes: tuple[str, ...] | None = None
    """Names by label, for labels that are numbers."""
    skip_incomplete: bool = False
    """Leave out samples without image or label."""
    skip_faults: bool = False
    """Leave out every sample and shard with a fault."""
    renumber: bool = False
    """Number the ids that occur from 0, and name the classes by them."""

    def __post_init__(self) -> None:
        kind, _, rest = (self.label or "cls").partition(":")
        if kind not in ("cls", "json", "name", "none") or (kind == "json" and not rest) or (kind in ("cls", "none") and rest):
            raise ConfigError(f"--label {self.label} is unknown: add --label cls, json:PATH, name, name:REGEX or none")
        if kind == "name" and rest:
            try:
                if not re.compile(rest).groups:
                    raise ConfigError(f"--label {self.label}: the expression needs a group, as in name:([a-z]+)_")
            except re.error as error:
                raise ConfigError(f"--label {self.label}: {error}") from None
        if self.renumber and self.classes:
            raise ConfigError("--renumber names the classes by their ids and --classes by a file: leave one out")
        if self.image:
            object.__setattr__(self, "image", self.image.lstrip(".").lower())

    def skips(self, fault: SampleFault) -> bool:
        """Return whether what has this fault is left out, instead of stopping the pass."""
        return self.skip_faults or (self.skip_incomplete and fault.kind in (NO_IMAGE, NO_LABEL))


class FoundSample(NamedTuple):
    """An image that can be used, with its label's text."""

    block: int
    length: int
    crc: int
    label: str
    key: str
    extensions: tuple[str, ...]
    """Of all its members."""
    size: tuple[int, int]
    """Width and height; (0, 0) where EXIF turns it."""
    grey: bool


def judged(key: str, sample: list[Member], rules: Rules) -> FoundSample:
    """Return what is used of a sample whose members are named by their extensions. Raises Unusable."""
    parts = {member.name: member for member in sample}
    if len(parts) < len(sample):
        twice = next(name for name, count in Counter(member.name for member in sample).items() if count > 1)
        raise Unusable("with a repeated key", f"has two members .{twice}", ONE_KEY)
    images = [name for name in parts if name in ((rules.image,) if rules.image else IMAGES)]
    if len(images) > 1:
        advice = f"add --image {images[0]}, or --image {images[1]}"
        raise Unusable("with several images", f"has several images ({', '.join(images)})", advice, ConfigError)
    if not images:
        raise _no_image(parts)
    text = _label(key, parts, rules)
    if text is None:
        advice = "add --label cls, json:PATH, name (its folder), name:REGEX or none"
        raise Unusable(NO_LABEL, f"has no label among {listed(parts)}", advice, ConfigError)
    if shown(text) != text:
        raise Unusable(BAD_LABEL, f"has a label that is not UTF-8 ({shown(text)})", "fix it")
    image = parts[images[0]]
    if image.kind == "link":
        raise _link(image)
    if image.data is None:
        raise Unusable(BAD_IMAGE, f"has an image of {image.size:,} bytes, which is too large", "make it smaller")
    try:
        size, grey = looked_at(image.data)
    except UndecodableError as error:
        raise Unusable(BAD_IMAGE, f"has no image that can be decoded ({error})", "replace it") from None
    crc = google_crc32c.value(image.data)
    return FoundSample(
        block=image.offset // BLOCK,
        length=image.size,
        crc=crc,
        label=text,
        key=shown(key),
        extensions=tuple(parts),
        size=size,
        grey=grey,
    )


def is_image(extension: str) -> bool:
    """Return whether a member with this extension looks like an image, also behind several dots."""
    return extension.rpartition(".")[2] in IMAGES


def shown(text: str) -> str:
    """Return `text` with escapes for bytes that are not UTF-8, so that it can be printed and stored."""
    return text.encode(errors="backslashreplace").decode()


def listed(names: Iterable[str]) -> str:
    """Return the names in one line, the first few if there are many."""
    names = [shown(name) for name in names]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def _no_image(parts: dict[str, Member]) -> Unusable:
    reason = f"has no image among {listed(parts)}"
    if not (dotted := [name for name in parts if is_image(name)]):
        return Unusable(NO_IMAGE, reason, "add --image EXTENSION if one of them is the image", ConfigError)
    return Unusable(
        NO_IMAGE,
        f"{reason}; its file names have several dots, and a key ends at the first",
        f"rename the files so that only the extension has a dot, or add --image {shown(dotted[0])} if every sample has one",
        ConfigError,
    )


def _link(member: Member) -> Unusable:
    reason = f"has a link .{member.name} to {shown(member.target)}, and an index points only at files"
    return Unusable("with a link", reason, "write the shard again with `tar --dereference --hard-dereference`")


def _label(key: str, parts: dict[str, Member], rules: Rules) -> str | None:
    """Return the text of a sample's label; None if it has none. Raises Unusable."""
    kind, _, rest = (rules.label or "cls").partition(":")
    if kind == "none":
        return "0"
    if kind == "name" and not rest:
        return key.rpartition("/")[0].rpartition("/")[2] or None
    if kind == "name":
        match = re.search(rest, key)
        return match[1] if match else None
    member = parts.get(kind)
    if member is not None and member.kind == "link":
        raise _link(member)
    if member is None or member.data is None:
        return None
    try:
        text = member.data.decode("utf-8-sig")
        node: Any = text if kind == "cls" else json.loads(text)
    except ValueError as error:
        raise Unusable(BAD_LABEL, f"has a label in .{kind} that cannot be read ({error})", "fix it") from None
    try:
        for step in rest.split(".") if kind == "json" else ():
            node = node[int(step) if isinstance(node, list) else step]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    if not isinstance(node, str | int | float | None):
        reason = f"has {json.dumps(node)[:60]} at --label {rules.label}, which is no number and no text"
        raise Unusable(BAD_LABEL, reason, "add --label json:PATH with the path of a number or text", ConfigError)
    return None if node is None else str(node).strip() or None
