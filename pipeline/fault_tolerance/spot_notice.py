"""A cloud's notice that this machine is about to be taken away."""

import json
import os
import threading
import time
import urllib.error
import urllib.request
from typing import Literal

from pipeline import variables
from pipeline.errors import ConfigError
from pipeline.wording import printable

_POLL_SECONDS = 5.0
_LONGEST_ANSWER = 1 << 20  # bytes


class SpotWatch:
    """Asks a cloud's metadata server whether this machine is about to be taken away (AWS: 2 minutes ahead, others 30 s)."""

    def __init__(self, cloud: Literal["aws", "gcp", "azure"]) -> None:
        own = "http://metadata.google.internal" if cloud == "gcp" else "http://169.254.169.254"
        self._url = os.environ.get(variables.METADATA_URL, own).rstrip("/")
        self._cloud = cloud
        # The server is on the machine's own link: no proxy leads to it.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._ask = {"aws": self._aws, "gcp": self._gcp, "azure": self._azure}[cloud]

    def check(self) -> None:
        """Raises ConfigError if the server does not answer: this is another cloud, or none."""
        for attempt in range(3):
            try:
                self._ask()
                return
            except Exception as error:  # whatever another server's answer makes of a parser
                reason = printable(f"{error or type(error).__name__}"[:200])
                time.sleep(attempt)
        raise ConfigError(
            f"stop.spot_notice={self._cloud}: {self._url} does not answer as its metadata server does ({reason}): "
            "name another cloud, or none"
        )

    def run(self, notice: threading.Event) -> None:
        """Ask until there is a notice. One question that fails is no notice: the next comes in seconds."""
        while not notice.is_set():
            try:
                if self._ask():
                    notice.set()
            except Exception:  # and whatever it answers: a watch that has ended would miss the notice
                pass
            notice.wait(_POLL_SECONDS)

    def _get(self, path: str, headers: dict[str, str], method: str = "GET") -> str:
        request = urllib.request.Request(self._url + path, headers=headers, method=method)
        with self._opener.open(request, timeout=2) as answer:
            return answer.read(_LONGEST_ANSWER).decode()

    def _aws(self) -> bool:
        token = self._get("/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
        try:
            self._get("/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return False
        return True

    def _gcp(self) -> bool:
        return self._get("/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}).strip() == "TRUE"

    def _azure(self) -> bool:
        """Events are of a whole scale set: only those that name this machine count, and not a pause of seconds (Freeze)."""
        ours = {"Metadata": "true"}
        events = json.loads(self._get("/metadata/scheduledevents?api-version=2020-07-01", ours))["Events"]
        events = [event for event in events if event["EventType"] in ("Preempt", "Terminate", "Reboot", "Redeploy")]
        if not events:
            return False
        name = self._get("/metadata/instance/compute/name?api-version=2021-02-01&format=text", ours).strip()
        return any(name in event["Resources"] for event in events)
