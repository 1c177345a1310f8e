"""Letters between processes that know one token, and what anybody else gets: nothing."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import variables
from pipeline.errors import ConfigError
from pipeline.messaging import mailbox, signing
from pipeline.messaging.job_token import Token, token
from pipeline.messaging.mailbox import Mailbox
from pipeline.messaging.mailbox_client import Mail, MailLost, MailRefused
from pipeline.messaging.signing import HEADER, MOST, PROOF, REPLY, Seal, Unsealed
from pipeline.messaging.store_relay import Relay, loopback_store

TOKEN = "0123456789abcdef" * 2


@pytest.fixture
def box() -> Iterator[Mailbox]:
    box = Mailbox("127.0.0.1", 0, TOKEN)
    yield box
    box.close()


def seals(direction: bytes, key: str = TOKEN) -> tuple[Seal, Seal]:
    """Of one connection, its sender's and its receiver's."""
    return Seal(key, b"challenge", b"reply", direction), Seal(key, b"challenge", b"reply", direction)


def opened(seal: Seal, frame: bytes) -> bytes:
    header, payload = frame[:HEADER], frame[HEADER:]
    if seal.length(header) != len(payload):
        raise Unsealed("cut")
    return seal.check(header, payload)


@given(st.lists(st.binary(max_size=50), max_size=6))
def test_messages_come_as_they_went(messages: list[bytes]) -> None:
    going, coming = seals(b"to main")
    assert [opened(coming, going.wrap(message)) for message in messages] == messages


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=4), st.data())
def test_what_was_changed_repeated_left_out_or_sent_back_is_noticed(messages: list[bytes], data: st.DataObject) -> None:
    going, coming = seals(b"to main")
    frames = [going.wrap(message) for message in messages]
    for frame in frames[:-1]:
        opened(coming, frame)
    last, what = bytearray(frames[-1]), data.draw(st.sampled_from(["change", "repeat", "other", "back", "token"]))
    if what == "change":
        last[data.draw(st.integers(0, len(last) - 1))] ^= data.draw(st.integers(1, 255))
    elif what == "repeat":
        opened(coming, frames[-1])
    elif what == "other":
        last = bytearray(going.wrap(messages[-1]))  # the one before it was left out
    elif what == "back":
        coming = seals(b"from main")[1]
        [coming._next(b"") for _ in frames[:-1]]
    else:
        coming = seals(b"to main", TOKEN[::-1])[1]
    with pytest.raises(Unsealed):
        opened(coming, bytes(last))


def test_a_message_that_is_too_long_goes_nowhere() -> None:
    going, coming = seals(b"to main")
    with pytest.raises(ValueError, match="at most"):
        going.wrap(bytes(MOST + 1))
    with pytest.raises(Unsealed, match="4,294,967,295 bytes"):
        coming.length(b"\xff" * HEADER)


def test_letters(box: Mailbox) -> None:
    one, other = (Mail("127.0.0.1", box.port, TOKEN) for _ in range(2))
    assert one.find("a") is None and not one.check("a")
    one.set("a", "é\n")
    assert other.get("a", 0) == "é\n" and other.check("a")
    threading.Timer(0.2, one.set, ("late", "came")).start()
    assert other.get("late", 30) == "came"
    with pytest.raises(TimeoutError, match="no letter never"):
        other.get("never", 0.1)
    assert [one.add("n"), other.add("n"), one.add("m")] == [1, 2, 1]
    other.delete("a")
    assert not one.check("a")
    one.close()
    assert one.find("late") == "came"  # again connected


def test_a_mailbox_that_goes_is_noticed_at_once(box: Mailbox) -> None:
    mail = Mail("127.0.0.1", box.port, TOKEN)
    threading.Timer(0.2, box.close).start()
    began = time.monotonic()
    with pytest.raises(MailLost):
        mail.get("never", 100)
    assert time.monotonic() - began < 50


def test_who_has_another_token_is_refused_on_either_side(box: Mailbox, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        with pytest.raises(MailRefused):
            Mail("127.0.0.1", box.port, TOKEN[::-1])
    assert capfd.readouterr().err.count("\n") == 1  # one line, not one each
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def impostor() -> None:
            connection, _ = listener.accept()
            connection.sendall(signing.challenge())
            connection.recv(REPLY)
            connection.sendall(os.urandom(PROOF))

        thread = threading.Thread(target=impostor)
        thread.start()
        with pytest.raises(MailRefused):
            Mail("127.0.0.1", listener.getsockname()[1], TOKEN)
        thread.join()


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * REPLY, os.urandom(1000), b"\xff" * (8 << 20), signing.GREETING * 9],
    ids=["no", "x", "any", "huge", "own"],
)
def test_a_stranger_gets_a_challenge_and_a_refusal(box: Mailbox, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", box.port), 10) as connection:
        got = bytearray()
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                got += part
        except OSError:  # of what he had to say most was not read
            pass
    assert got[: len(signing.GREETING)] == signing.GREETING[: len(got)] and not bytes(got[signing.CHALLENGE :]).strip(b"\0")
    mail = Mail("127.0.0.1", box.port, TOKEN)
    assert mail.find("a") is None


def test_strangers_who_say_nothing_do_not_keep_others_out(box: Mailbox) -> None:
    held = [socket.create_connection(("127.0.0.1", box.port), 10) for _ in range(3 * mailbox._STRANGERS)]
    mail = Mail("127.0.0.1", box.port, TOKEN)
    mail.set("a", "b")
    assert mail.find("a") == "b" and len(box._strangers) <= mailbox._STRANGERS
    held[0].settimeout(mailbox._SECONDS / 2)
    with contextlib.suppress(ConnectionError):  # the oldest was closed before its time
        while held[0].recv(100):
            pass
    for connection in held:
        connection.close()


@pytest.mark.parametrize(
    "request_", ["null", "{}", '{"do": "set", "key": 1}', '{"do": "exec"}', '{"do": "get", "seconds": 1e9}', "[" * 9999, "\xff"]
)
def test_a_request_without_sense_ends_the_connection_and_nothing_else(box: Mailbox, request_: str) -> None:
    mail = Mail("127.0.0.1", box.port, TOKEN)
    assert mail._socket
    mail._socket.sendall(mail._going.wrap(request_.encode("latin-1")))
    assert mail._socket.recv(1) == b""
    assert Mail("127.0.0.1", box.port, TOKEN).find("a") is None


def test_a_store_is_reached_through_the_relay_with_the_token_alone() -> None:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store, port = loopback_store()
    box = Mailbox("127.0.0.1", 0, TOKEN, relay_to=port)
    good, bad = (Relay("127.0.0.1", box.port, key) for key in (TOKEN, TOKEN[::-1]))
    far = TCPStore("127.0.0.1", good.port, is_master=False)
    far.set("a", "b" * 300_000)
    assert store.get("a") == b"b" * 300_000
    with socket.create_connection(("127.0.0.1", bad.port), 10) as connection:
        assert connection.recv(1) == b""
    del far
    for part in (good, bad, box):
        part.close()


def test_where_the_token_comes_from(tmp_path: Path) -> None:
    file, run = tmp_path / "token", tmp_path / "a run" / "one"
    assert token({variables.TOKEN: TOKEN}, None, None) == Token(TOKEN)
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    assert token({variables.TOKEN: "other" * 9}, str(file), None).given == TOKEN
    # Without one: the main node leaves a new one beside RUN, that nobody else may read, and takes it away.
    shared = token({}, None, f"{run}/")
    assert shared.find() is None
    made = shared.make()
    assert made == shared.find() and len(made) == 64 and made != shared.make() != shared.find()[:1]  # type: ignore[index]
    (left,) = run.parent.iterdir()
    assert left.name == "one.token" and left.stat().st_mode & 0o777 == 0o600
    shared.forget()
    assert not list(run.parent.iterdir())


def test_tokens_that_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(ConfigError, match="there is no such file"):
        token({}, str(file), None)
    file.write_text(TOKEN)
    for mode in (0o640, 0o604, 0o660):
        file.chmod(mode)
        with pytest.raises(ConfigError, match=rf"not yours alone \(mode {mode:o}\)"):
            token({}, str(file), None)
    with pytest.raises(ConfigError, match=f"{variables.TOKEN}: the token needs 16 characters"):
        token({variables.TOKEN: "short"}, None, None)
    with pytest.raises(ConfigError, match="not yours alone"):
        token({}, str(tmp_path), None)
    with pytest.raises(ConfigError, match=f"has no token.*set the variable {variables.TOKEN} .*pass --token-file FILE"):
        Token().make()
