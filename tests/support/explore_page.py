"""The page of `biggan explore`, served in this process."""

import argparse
import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import uvicorn

from jobs import explore
from pipeline.ui.explore_app import Subject, make_app
from pipeline.ui.explore_server import hosts_of, make_server


class Page:
    """The server of a model's page, in this process."""

    def __init__(self, at: str, server: uvicorn.Server) -> None:
        self.at, self.server = at, server

    def get(self, path: str, **query: object) -> tuple[int, Any]:
        """Status, and what the JSON says."""
        return self.ask(path, query)

    def ask(self, path: str, query: dict[str, Any] | list[tuple[str, str]]) -> tuple[int, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        sent = urlencode(query, errors="surrogateescape")
        try:
            with opener.open(f"{self.at}/api/{path}?{sent}", timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    explore.add_arguments(parser)
    return parser.parse_args(argv)


@contextmanager
def served(subject: Subject, *proxies: str) -> Iterator[Page]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(make_app(subject, hosts_of("127.0.0.1", "127.0.0.1", proxies)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Page(f"http://127.0.0.1:{listener.getsockname()[1]}", server)
        finally:
            server.should_exit = True
            thread.join()
            if subject.neighbours:
                subject.neighbours.close()
