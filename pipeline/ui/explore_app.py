"""The page of `biggan explore`: one HTML file, and what it asks for as JSON."""

import base64
import hashlib
import json
import shlex
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp
from torch import Tensor

from pipeline.errors import ConfigError, UserError
from pipeline.generation.load import parse_truncation
from pipeline.images.pillow import png
from pipeline.ui.explore_server import Guard, Hosts, Turns
from pipeline.ui.neighbours import Neighbours
from pipeline.ui.renderer import Point, Renderer
from pipeline.wording import printable

Plan = Response | Callable[[], dict[str, Any]]
"""An answer that is there, or how to draw it."""

_MOST_SAMPLES = 64  # what one batch of `biggan sample` holds, so that both draw the same bytes
_MOST_STEPS, _MOST_NEIGHBOURS = 32, 32
_TRUNCATIONS = 0.01, 100.0
_LONGEST_NUMBER, _LONGEST_NAME = 20, 100  # characters
_LAST_SEED = 2**63 - 1  # of MLflow's `long`, the seed of a registered model


@dataclass(frozen=True)
class Subject:
    """What the page is about."""

    name: str
    """MODEL as it was typed."""
    flags: tuple[str, ...]
    """Those of `biggan sample` that name the same model."""
    painter: Renderer
    data: str
    """Where the training images are, or why there are none."""
    neighbours: Neighbours | None


def make_app(subject: Subject, hosts: Hosts) -> ASGIApp:
    """Answers to GET /, /api/model, /api/samples, /api/walk and /api/nearest, of the user's own page only.

    Bad input is status 400, a request of another page 403, an index in the making 202, storage that fails or too many
    requests 503; each error is {"error": one line}, with the `parameter` that does not fit.
    """
    html, names, turns = Path(__file__).with_name("explore.html").read_text(), shown(subject.painter.classes), Turns()

    def page(request: Request) -> Response:
        return HTMLResponse(html)

    def answer(plan: Callable[[Subject, "_Query"], Plan]) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            work = plan(subject, _Query(request.query_params.multi_items(), names))
            return work if isinstance(work, Response) else _json(await turns.take(request, work) or {})

        return respond

    plans: dict[str, Callable[[Subject, _Query], Plan]]
    plans = {"model": _model, "samples": _samples, "walk": _walk, "nearest": _nearest}
    routes = [Route("/", page), *(Route(f"/api/{name}", answer(plan)) for name, plan in plans.items())]
    app = Starlette(routes=routes, exception_handlers={UserError: _refused, HTTPException: _unknown})
    return Guard(app, hosts, _policy(html))


def shown(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names as a page can show them and send them back: one printable line each, not long, no two alike."""
    found: dict[str, None] = {}
    for number, name in enumerate(names):
        line = printable(name).strip()
        line = line if len(line) <= _LONGEST_NAME else f"{line[: _LONGEST_NAME - 3]}..."
        while not line or line in found:
            line = f"{line} ({number})".strip()
        found[line] = None
    return tuple(found)


def _policy(html: str) -> str:
    """Return the Content-Security-Policy of the page: its own script and style as they are, images out of answers."""
    hashes = {
        tag: base64.b64encode(
            hashlib.sha256(html.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0].encode()).digest()
        ).decode()
        for tag in ("script", "style")
    }
    own = "; ".join(f"{tag}-src 'sha256-{digest}'" for tag, digest in hashes.items())
    none = "; ".join(f"{name} 'none'" for name in ("default-src", "base-uri", "form-action", "frame-ancestors"))
    return f"{none}; {own}; img-src data:; connect-src 'self'"


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    # In ASCII: half of a surrogate pair has no UTF-8.
    return Response(json.dumps(content), status, {"Cache-Control": "no-store"}, "application/json")


def _refused(request: Request, error: Exception) -> Response:
    content = {"error": printable(str(error))} | ({"parameter": error.parameter} if isinstance(error, _ParameterError) else {})
    return _json(content, 400 if isinstance(error, ConfigError) else 503)


def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"error": f"{request.method} {printable(request.scope['path'][:100])}: {error.detail}"}, error.status_code)


class _ParameterError(ConfigError):
    """A parameter that does not fit; the page marks its field."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class _Query:
    """The parameters of a request. Every method raises _ParameterError with the parameter's name."""

    def __init__(self, given: Sequence[tuple[str, str]], names: tuple[str, ...]) -> None:
        self.names = names
        self._given = dict(given)
        self._left = set(self._given)
        if len(given) > len(self._given):
            twice = next(name for name, _ in given if sum(name == other for other, _ in given) > 1)
            raise _ParameterError(twice, f"{printable(_short(twice))} is given twice")

    def whole(self, name: str, least: int, most: int, default: int) -> int:
        text = self._take(name) or str(default)
        if len(text) > _LONGEST_NUMBER or not text.isdecimal() or not least <= int(text) <= most:
            raise _ParameterError(name, f"{name} {_short(text)!r}: must be a whole number from {least:,} to {most:,}")
        return int(text)

    def truncation(self) -> float | None:
        text = self._take("truncation") or "none"
        try:
            value = parse_truncation(text if len(text) <= _LONGEST_NUMBER else "", "truncation")
        except ConfigError:
            value = 0.0
        least, most = _TRUNCATIONS
        if value is not None and not least <= value <= most:
            message = f"truncation {_short(text)!r}: must be a number from {least:g} to {most:g}, or none"
            raise _ParameterError("truncation", message)
        return value

    def label(self, name: str) -> int | None:
        """A class by its name, as it is shown, or its number; None if nothing is given."""
        text = self._take(name)
        if not text:
            return None
        if text in self.names:
            return self.names.index(text)
        if len(text) <= _LONGEST_NUMBER and text.isdecimal() and int(text) < len(self.names):
            return int(text)
        names = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
        message = f"{name} {_short(text)!r}: no such class; the model has 0 to {len(self.names) - 1}: {names}"
        raise _ParameterError(name, message)

    def point(self, prefix: str) -> Point:
        label = self.label(f"{prefix}class")
        if label is None:
            raise _ParameterError(f"{prefix}class", f"{prefix}class is missing: name one of the model's {len(self.names):,}")
        seed = self.whole(f"{prefix}seed", 0, _LAST_SEED, 0)
        return Point(label, seed, self.whole(f"{prefix}sample", 0, _MOST_SAMPLES - 1, 0))

    def end(self) -> None:
        """Raises ConfigError for parameters that nobody has asked for."""
        if self._left:
            raise _ParameterError(min(self._left), f"{printable(_short(min(self._left)))}: no such parameter")

    def _take(self, name: str) -> str:
        self._left.discard(name)
        return self._given.get(name, "").strip()


def _model(subject: Subject, query: _Query) -> Plan:
    query.end()
    painter, known = subject.painter, subject.neighbours
    return _json(
        {
            "name": subject.name,
            "network": painter.config.generator,
            "resolution": painter.config.resolution,
            "images": painter.images,
            "weights_sha256": painter.weights_sha256,
            "classes": query.names,
            "data": printable(subject.data),
            "neighbours": known and {"samples": known.samples, "total": known.total},
            "most": {"count": _MOST_SAMPLES, "steps": _MOST_STEPS},
        }
    )


def _samples(subject: Subject, query: _Query) -> Plan:
    label, seed = query.label("class"), query.whole("seed", 0, _LAST_SEED, 0)
    truncation, count = query.truncation(), query.whole("count", 1, _MOST_SAMPLES, 20)
    query.end()
    names = query.names
    labels = [i % len(names) if label is None else label for i in range(count)]
    flags = ["--count", str(count), "--seed", str(seed), *subject.flags]
    if label is not None:
        plain = names[label] == subject.painter.classes[label] and "," not in names[label] and names[label][0] != "-"
        flags += ["--classes", names[label] if plain else str(label)]
    if truncation is not None:
        flags += ["--truncation", str(truncation).removesuffix(".0")]

    def draw() -> dict[str, Any]:
        images = enumerate(zip(subject.painter.samples(labels, seed, truncation), labels, strict=True))
        return {
            "images": [{"png": _png(image), "class": names[label], "sample": i} for i, (image, label) in images],
            "command": shlex.join(["biggan", "sample", subject.name, "set/", *flags]),
        }

    return draw


def _walk(subject: Subject, query: _Query) -> Plan:
    start, end = query.point("from_"), query.point("to_")
    truncation, steps = query.truncation(), query.whole("steps", 2, _MOST_STEPS, 9)
    query.end()
    return lambda: {"images": [{"png": _png(image)} for image in subject.painter.walk(start, end, steps, truncation)]}


def _nearest(subject: Subject, query: _Query) -> Plan:
    point, truncation, count = query.point(""), query.truncation(), query.whole("count", 1, _MOST_NEIGHBOURS, 8)
    query.end()
    known = subject.neighbours
    if known is None:
        raise ConfigError(subject.data)
    if not known.ready():
        return _json({"done": known.done, "total": known.total}, 202)
    names = shown(known.classes)

    def search() -> dict[str, Any]:
        image = subject.painter.sample(point, truncation)
        return {
            "image": {"png": _png(image)},
            "nearest": [
                {"png": _png(found.image), "class": names[found.label], "distance": round(found.distance, 2)}
                for found in known.nearest(image, count)
            ],
            "how": f"Nearest of {known.count:,} of the {known.samples:,} training images, by pixel distance at "
            f"{known.side} × {known.side}: the root mean square of the differences, of 255 levels.",
        }

    return search


def _short(text: str) -> str:
    """Return the beginning of what was typed, for a message."""
    return text if len(text) <= 40 else f"{text[:40]}..."


def _png(image: Tensor) -> str:
    """uint8 [C, r, r] -> base64 of a PNG."""
    return base64.b64encode(png(image.permute(1, 2, 0).contiguous().numpy())).decode()
