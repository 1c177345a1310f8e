"""Tell a store's no from its not now: the errors of `pipeline.storage`, and what each backend's failure means.

`StorageError` is a passing fault: `pipeline.storage.retry` retries it. `RefusedError` and `NotFoundError` are final
(`ConfigError`).
"""

import errno
import re
from urllib.parse import urlsplit

from obstore import exceptions as obstore_errors

from pipeline.errors import ConfigError, StorageError
from pipeline.storage.object_stores import STORES
from pipeline.wording import hide_secrets

# Instance metadata are the last resort for credentials.
_NO_CREDENTIALS = ("169.254.169.254", "metadata.google.internal", "Account must be specified")
_BAD_CREDENTIALS = ("Invalid Access Key", "service account file", "reading pem file")  # said before anything is asked
_EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "Request has expired", "Signature not valid in the specified time frame")
_WRONG_REGION = ("AuthorizationHeaderMalformed", "PermanentRedirect", "incorrectly configured region")
_WRONG_CLOCK = ("RequestTimeTooSkewed",)
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
# Answers that another try cannot change: all of 4xx and 5xx but these.
PASSING_STATUS = frozenset({408, 409, 423, 425, 429, *range(500, 600)} - {501, 505})
_NO_NAME = "Name or service not known"  # of the resolver; "Temporary failure in name resolution" may pass


class NotFoundError(ConfigError):
    """Nothing is stored under that name."""


class RefusedError(ConfigError):
    """The store refuses, and will refuse again."""


class FirstContactError(RefusedError):
    """No such host, or no credentials: final at first contact, a passing fault once the store has answered."""


class ChangedError(StorageError):
    """What is stored under that name is no longer what it was."""


def absent(uri: str, verb: str) -> NotFoundError:
    """Return the error for a name under which nothing is stored."""
    return NotFoundError(f"cannot {verb} {hide_secrets(uri)}: there is no such file, object or bucket")


def unknown_host(uri: str, verb: str, host: str) -> FirstContactError:
    """Return the error for a host that the resolver does not know."""
    return FirstContactError(f"cannot {verb} {hide_secrets(uri)}: no host is named {host}; check the address for a typo")


def bad_certificate(uri: str, verb: str, reason: str) -> RefusedError:
    """Return the error for a certificate that is not trusted."""
    return RefusedError(
        f"cannot {verb} {hide_secrets(uri)}: its TLS certificate is not trusted ({reason}); "
        "set SSL_CERT_FILE to a file with the certificates of its authority"
    )


def no_tls(uri: str, verb: str) -> RefusedError:
    """Return the error for a server that answers a TLS handshake with something else."""
    return RefusedError(f"cannot {verb} {hide_secrets(uri)}: the server does not speak TLS; use an http:// address for it")


def translate(error: obstore_errors.BaseError, uri: str, verb: str) -> ConfigError | StorageError:
    """Return what a failure of obstore means. Most have no class, only a status or a cause in their text."""
    text, store = str(error), STORES[uri.partition("://")[0]]
    match = re.search(r"status code: (\d{3})", text)
    status, failed = int(match[1]) if match else 0, f"cannot {verb} {uri}"
    own, public = store.credentials, store.public
    if isinstance(error, obstore_errors.PreconditionError) or status == 416:
        return ChangedError(f"{uri} has changed")
    if any(sign in text for sign in _WRONG_REGION):
        return RefusedError(f"{failed}: its bucket is in another region; set AWS_REGION to that")
    if any(sign in text for sign in _NO_CREDENTIALS):
        return FirstContactError(f"{failed}: no credentials; set {own}, or {public} for public data")
    if any(sign in text for sign in _EXPIRED):
        return RefusedError(f"{failed}: the credentials have expired ({reason(text)}); get new ones and set {own}")
    if any(sign in text for sign in _WRONG_CLOCK):
        return RefusedError(f"{failed}: this machine's clock is wrong ({reason(text)}); set the clock")
    refused = isinstance(error, obstore_errors.PermissionDeniedError | obstore_errors.UnauthenticatedError)
    if refused or status in (401, 403) or any(sign in text for sign in _BAD_CREDENTIALS):
        return RefusedError(
            f"{failed}: the store refused the credentials ({reason(text)}); check {own} and the bucket's policy"
        )
    if any(sign in text for sign in _NO_BUCKET):
        return NotFoundError(f"{failed}: there is no bucket {urlsplit(uri).netloc}; check its name")
    if isinstance(error, obstore_errors.NotFoundError) or status == 404:
        return absent(uri, verb)
    if "InvalidContentType" in text:
        return no_tls(uri, verb)
    if found := re.search(r"InvalidCertificate\(\s*(?:Other\(\s*OtherError\(\s*)?(\w+)", text):
        return bad_certificate(uri, verb, found[1])
    if _NO_NAME in text:
        return unknown_host(uri, verb, urlsplit(_asked(text)).hostname or "that")
    if "Encountered object with invalid path" in text:
        key = re.search(r'invalid path: Path "([^"]*)"', text)
        return RefusedError(
            f"cannot list {uri}: a key below it has an empty part ({key[1] if key else '//'}); remove that object, or name the "
            f"files: {uri.rstrip('/')}/{{000..127}}.tar"
        )
    final = "NotSupported" in type(error).__name__ or "NotImplemented" in type(error).__name__
    if final or (status and status not in PASSING_STATUS and "RequestTimeout" not in text):
        return RefusedError(f"{failed}: the store refuses it ({reason(text)})")
    return StorageError(f"{failed}: {reason(text)}")


def reason(text: str) -> str:
    """Return the cause in an obstore error, in a few words: the store's own where it gave some, never its markup."""
    answer, _, debug = text.partition("\n\nDebug source")
    if found := re.search(r"status code: (\d{3}[^:\n]*)", answer):
        return answered(found[1].strip(), answer[found.end() :])
    causes = re.findall(r'(?:message|error): "([^"]+)"', debug)
    if causes or "TimedOut" in debug:
        return causes[-1] if causes else "no answer in time"
    return answer.strip().splitlines()[0].rpartition(" - ")[2][:300]


def answered(status: str, body: str) -> str:
    """Return `status` and what the body of the answer says: its code and message (XML, JSON), nothing of a web page."""
    code = re.search(r"<Code>([^<]+)</Code>", body)
    message = re.search(r"<Message>([^<]+)</Message>", body) or re.search(r'"message":\s*"([^"]+)"', body)
    said = [found[1].strip().splitlines()[0] for found in (code, message) if found]
    plain = body.strip().lstrip(": ").splitlines()[:1]
    if not said and plain and not plain[0].lstrip().startswith(("<", "{")):
        said = [plain[0]]
    return hide_secrets(": ".join([status, *said])[:300].rstrip("."))


def of_os(error: OSError, uri: str, verb: str, local: bool) -> ConfigError | StorageError:
    """Return what a disk's or an fsspec driver's failure means."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        text = str(error)  # obstore's NotFoundError is one
        if any(sign in text for sign in _NO_BUCKET):
            return NotFoundError(f"cannot {verb} {uri}: there is no bucket {urlsplit(uri).netloc}; check its name")
        return absent(uri, verb)
    if local and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ConfigError(f"cannot {verb} {uri}: {error.strerror}; name another place or fix its permissions")
    if local and error.errno in (errno.EEXIST, errno.EISDIR):
        return ConfigError(f"cannot {verb} {uri}: a file or folder of that name is in the way; name another place")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"cannot {verb} {uri}: the disk is full; free some space, then run the same command again")
    said = error.strerror or (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    if isinstance(error, PermissionError):
        return RefusedError(f"cannot {verb} {hide_secrets(uri)}: the store refused ({said}); check its credentials")
    return StorageError(f"cannot {verb} {hide_secrets(uri)}: {said}")


def _asked(text: str) -> str:
    found = re.search(r"https?://[^\s,]+", text)
    return found[0] if found else ""
