"""A generator behind `mlflow models serve`, over HTTP. Imports neither torch nor MLflow.

The server may lie below a path, as behind a gateway: http://HOST/PATH is asked at PATH/invocations. The token in
`BIGGAN_SERVER_TOKEN` is sent with every request, to that address only.
"""

import base64
import contextlib
import difflib
import http.client
import json
import os
import re
import ssl
import string
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Annotated, Any, Required

from pydantic import Field
from typing_extensions import TypedDict

from pipeline import variables
from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.untrusted import parse, parsing
from pipeline.wording import plural, printable

MOST_ROWS = 1024
"""Images in one request, as in `pipeline.generation.pyfunc_model`."""


_NO_SERVER = (404, 405, 410, 501)  # what a server answers that has no /invocations, or only files
_PASSING = (408, 425, 429)
_ROW_BYTES = 4 << 20
"""More than an image of 512 pixels, or the description of 100,000 classes, takes in an answer."""


class _Answer(TypedDict):
    predictions: list[Any]


class _Refusal(TypedDict):
    message: str


class About(TypedDict, total=False):
    """How a model describes itself."""

    classes: Required[Annotated[list[str], Field(min_length=1)]]
    params: Required[list[str]]
    images: int
    weights_sha256: str
    resolution: int
    channels: int


class NoServerError(ConfigError):
    """Something answers at the address, and it does not serve a model."""


def is_server(uri: str) -> bool:
    """Return whether `uri` can only be a server's: http://HOST:PORT, or an address that ends in /invocations."""
    return re.fullmatch(r"https?://([^/?#]+/?|[^?#]+/invocations/?)([?].*)?", uri) is not None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A POST that is redirected would arrive as a GET, and its token at somebody else's."""

    def redirect_request(self, *args: Any) -> None:
        return None


class Client:
    """Asks the server at `url`, with or without /invocations. Raises StorageError if it does not answer for now.

    Raises ConfigError for what will not change: what the model refuses, no access, and NoServerError.
    """

    def __init__(self, url: str, timeout: float = 600.0):
        self.url, self._timeout = url, timeout
        address, question, query = urllib.parse.quote(url, safe=string.punctuation).partition("?")
        self._address = address.rstrip("/").removesuffix("/invocations") + "/invocations" + question + query
        answer = (self._ask([0], {"format": "description"}) or [{}])[0]
        if not isinstance(answer, dict) or not isinstance(answer.get("description"), str):
            raise ConfigError(
                f"{url} serves a model that does not describe itself: serve one that `biggan register` registered"
            )
        self.about = parse(About, answer["description"], f"{url}: what the model says of itself", "serve it anew")

    def sample(self, class_ids: Sequence[int], *, start: int = 0, **params: Any) -> list[bytes]:
        """A PNG for each of `class_ids` [n]; image i is sample `start` + i of `seed`.

        `params` are those of the model's signature. MLflow would drop one that is misspelt, so it is refused here.
        """
        allowed = [name for name in self.about["params"] if name != "format"]
        for name in params:
            if name not in allowed:
                nearest = (difflib.get_close_matches(name, allowed, n=1) or [", ".join(allowed)])[0]
                raise ConfigError(f"{self.url}: the model has no parameter {name}; did you mean {nearest}?")
        pictures: list[bytes] = []
        for first in range(0, len(class_ids), MOST_ROWS):
            asked = class_ids[first : first + MOST_ROWS]
            rows = self._ask(asked, params | {"start": start + first})
            if len(rows) != len(asked):
                was = plural(len(asked), "image")
                raise DataError(f"{self.url} answers with {plural(len(rows), 'row')} where {was} were asked for: serve it anew")
            with parsing(f"{self.url}: its answer has no pictures", "serve the model anew"):
                pictures += [base64.b64decode(row["png"], validate=True) for row in rows]
        return pictures

    def _ask(self, class_ids: Sequence[int], params: dict[str, Any]) -> list[Any]:
        given = {name: value for name, value in params.items() if value is not None}
        body = {"dataframe_split": {"columns": ["class_id"], "data": [[int(i)] for i in class_ids]}, "params": given}
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(variables.SERVER_TOKEN):
            headers["Authorization"] = f"Bearer {token}"
        try:
            request = urllib.request.Request(self._address, json.dumps(body).encode(), headers)
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=self._timeout) as answer:
                text = answer.read(most := (len(class_ids) + 1) * _ROW_BYTES)
                if len(text) < most and answer.length:
                    raise http.client.IncompleteRead(text, answer.length)
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._failure(getattr(error, "reason", error)) from None
        if len(text) == most:
            raise DataError(f"{self.url} answers with more than {most >> 20} MiB: serve the model anew")
        try:
            return parse(_Answer, text, self.url)["predictions"]
        except DataError:
            raise self._no_server("answers without predictions") from None

    def _refusal(self, error: urllib.error.HTTPError) -> ConfigError | StorageError:
        """What an answer means that is no success."""
        said = printable(f"answers {error.code} {error.reason}")[:200]
        with parsing(f"{self.url} {said}", error=StorageError):  # cut off in the middle
            text = error.read(_ROW_BYTES).decode(errors="replace")
        if error.code in (301, 302, 303, 307, 308):
            return ConfigError(
                f"{self.url} is redirected to {printable(error.headers.get('Location') or '?')[:200]}: name that address"
            )
        if error.code in (401, 403):
            how = (
                f"the token in {variables.SERVER_TOKEN} is refused"
                if variables.SERVER_TOKEN in os.environ
                else "it needs a token"
            )
            return ConfigError(
                f"{self.url} {said}: {how}; set the environment variable {variables.SERVER_TOKEN} to a valid one"
            )
        if error.code in _NO_SERVER:
            return self._no_server(said)
        if error.code == 400:
            with contextlib.suppress(DataError):
                text = parse(_Refusal, text, self.url)["message"]
            # Before its last line, MLflow shows the request.
            return ConfigError(f"{self.url}: {printable((text.strip() or error.reason or said).splitlines()[-1])[:500]}")
        if 400 <= error.code < 500 and error.code not in _PASSING:
            return ConfigError(f"{self.url} {said}: {text[:200]!r}")
        return StorageError(f"{self.url} {said}: {text[:200]!r}")

    def _no_server(self, said: str) -> NoServerError:
        path = re.sub("^[a-z]+://[^/]+|[?].*", "", self._address)
        return NoServerError(
            f"{self.url} is no model server: it {said} at {path}; name the address of `mlflow models serve` "
            "(that of a tracking server goes into --tracking-uri)"
        )

    def _failure(self, reason: object) -> ConfigError | StorageError:
        """What it means that there was no answer."""
        if isinstance(reason, ssl.SSLCertVerificationError):
            return ConfigError(
                f"{self.url}: its certificate is not trusted ({reason.verify_message}); set the environment variable "
                "SSL_CERT_FILE to a file with that of its authority"
            )
        if isinstance(reason, ssl.SSLError):
            return ConfigError(f"{self.url} does not speak TLS ({reason.reason}): name its http:// address")
        if isinstance(reason, http.client.InvalidURL):
            return ConfigError(f"{self.url} is no address: {printable(str(reason))}")
        return StorageError(f"{self.url} does not answer: {printable(str(reason))[:200]}")
