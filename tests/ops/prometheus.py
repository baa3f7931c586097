"""A real Prometheus with the shipped configuration, made quicker, and the shipped dashboard."""

import json
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from qwenapi.settings.table import etc_dir
from tests.running_server import wait_for

CONFIG, RULES = etc_dir() / "prometheus/prometheus.yml", etc_dir() / "prometheus/rules.yml"
DASHBOARD = json.loads((etc_dir() / "grafana/qwenapi.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# What Grafana puts in for its variables.
VARIABLES = {
    "$__rate_interval": "5s",
    "$__range": "1m",
    "$instance": ".*",
    "$profile": ".*",
}
SHORTER = {"[5m]": "[8s]", "[10m]": "[20s]", "for: 1m": "for: 1s", "for: 30s": "for: 1s"}

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus is missing (sudo apt-get install prometheus)",
)


def replaced(text: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


class Prometheus:
    """The process, from its first scrape of the target on, and what it knows."""

    def __init__(self, folder: Path, target: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{address}/api/v1/"
        config = replaced(CONFIG.read_text(), {"15s": "1s", "127.0.0.1:8000": target})
        (folder / "prometheus.yml").write_text(config)
        (folder / "rules.yml").write_text(replaced(RULES.read_text(), SHORTER))
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder}/prometheus.yml",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address={address}",
                ],
                stdout=log,
                stderr=log,
            )
        wait_for(self._has_scraped, 30, (folder / "log").read_text)

    def get(self, path: str, **parameters: Any) -> Any:
        answer = requests.get(self.url + path, params=parameters, timeout=10)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def series(self, expression: str, *, is_instant: bool = False) -> list[dict[str, Any]]:
        """Return the series of a query now, or in the last minute: `metric`, `values`."""
        if is_instant:
            found = self.get("query", query=expression)["result"]
            return [{"metric": one["metric"], "values": [one["value"]]} for one in found]
        now = float(self.get("query", query="time()")["result"][0])
        found = self.get("query_range", query=expression, start=now - 60, end=now, step=1)
        return list(found["result"])

    def values(self, expression: str, *, is_instant: bool = False) -> list[float]:
        """Return the values of a query now, or of all its series in the last minute."""
        found = self.series(expression, is_instant=is_instant)
        return [float(value) for series in found for _, value in series["values"]]

    def firing(self) -> set[str]:
        alerts = self.get("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)

    def _has_scraped(self) -> bool:
        try:
            return self.values("qwenapi_ready", is_instant=True) == [1]
        except (requests.ConnectionError, AssertionError):
            return False
