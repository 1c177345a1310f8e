"""What ranks tell each other of a save, in the job's mailbox: the process group belongs to the main threads."""

import json
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Annotated, Literal

import pydantic

from pipeline.checkpoint.commit_document import Files
from pipeline.checkpoint.fencing import FencedError
from pipeline.engine import agreement
from pipeline.engine.ranks import Ranks, meeting_place
from pipeline.errors import NodeError, UserError
from pipeline.messaging import job_token
from pipeline.messaging.mailbox import Mailbox
from pipeline.messaging.mailbox_client import Mail, MailLost
from pipeline.messaging.store_relay import mail_of_environment
from pipeline.untrusted import parse

_PATIENCE = 7200.0
"""Seconds after which a rank that has not written its files hangs."""
_names = count()
"""All ranks make their mails in the same order, so that these names agree."""


@dataclass(frozen=True)
class SaveReport:
    """What a rank tells rank 0 of its part of a save, and rank 0 the others of the whole."""

    kind: Literal["saved", "fenced", "refused", "bug"] = "saved"
    message: str = ""
    files: Files = field(default_factory=dict)
    shapes: dict[str, dict[str, Annotated[list[int], pydantic.Field(max_length=16)]]] = field(default_factory=dict)


def failure(error: Exception) -> SaveReport:
    """Return what to tell of a save that has failed."""
    if isinstance(error, FencedError):
        return SaveReport("fenced", str(error))
    if isinstance(error, (UserError, OSError)) and not isinstance(error, (NodeError, MailLost, TimeoutError)):
        return SaveReport("refused", str(error))
    return SaveReport("bug", f"{type(error).__name__}: {error}")


class SaveMail:
    """This rank's letters of all saves, by their number."""

    def __init__(self, ranks: Ranks) -> None:
        self._rank, self._mail, self._name = ranks.rank, _connect(ranks), f"saver-{next(_names)}"

    def tell(self, serial: int, report: SaveReport) -> None:
        """Tell rank 0 of this rank's part of a save."""
        self._mail.set(f"{self._name}/{serial}/{self._rank}", json.dumps(asdict(report)))

    def told(self, serial: int, rank: int) -> SaveReport:
        """Return what `rank` has told; wait for it. Raises NodeError for what is no report."""
        key = f"{self._name}/{serial}/{rank}"
        said = self._mail.get(key, _PATIENCE)
        self._mail.delete(key)  # there are many saves
        return parse(SaveReport, said, f"what rank {rank} said of its save", error=NodeError)

    def announce(self, serial: int, outcome: SaveReport) -> None:
        """Tell all others what became of a save."""
        self._mail.set(f"{self._name}/{serial}/outcome", json.dumps(asdict(outcome)))

    def outcome(self, serial: int) -> SaveReport:
        """Return what rank 0 announces; wait for it. Raises NodeError for what is no report."""
        said = self._mail.get(f"{self._name}/{serial}/outcome", _PATIENCE)
        return parse(SaveReport, said, "what rank 0 said of a save", error=NodeError)


def _connect(ranks: Ranks) -> Mail:
    """Connect to the job's mailbox. Where none of our launchers has opened one, rank 0 does. Collective."""
    if mail := mail_of_environment():
        return mail
    token = agreement.from_main(str, job_token.new() if ranks.main else None, ranks)
    alone = ranks.nodes == 1
    address = "127.0.0.1" if alone else meeting_place()[0]
    port = agreement.from_main(int, Mailbox("127.0.0.1" if alone else "", 0, token).port if ranks.main else None, ranks)
    return Mail(address, port, token)
