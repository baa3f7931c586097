"""The container files: what they name exists, and docker-compose understands them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from qwenapi.settings.table import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "etc" / "docker"


def compose(*files, environ=None):
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed")
    flags = [word for name in files for word in ("-f", str(DOCKER / name))]
    environ = {"PATH": "/usr/local/bin:/usr/bin:/bin", **(environ or {})}
    command = ["docker-compose", *flags, "config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)["services"]["qwenapi"]


def test_compose_serves_the_demo_model_on_this_machine_alone_unless_told_otherwise():
    service = compose("docker-compose.yml")
    assert Path(service["build"]["context"]) == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert service["environment"]["QWENAPI_MODEL"] == ""
    assert service["ports"] == ["127.0.0.1:8000:8000/tcp"]
    grace = service["stop_grace_period"]
    minutes, seconds = (
        int(part or 0) for part in re.fullmatch(r"(?:(\d+)m)?(\d+)s", grace).groups()
    )
    assert 60 * minutes + seconds > Settings().drain_timeout


def test_compose_mounts_a_model_and_takes_gpus():
    service = compose(
        "docker-compose.yml", "docker-compose.cuda.yml", environ={"MODEL_DIR": "/data/Qwen3-8B"}
    )
    assert service["environment"]["QWENAPI_MODEL"] == "/data/Qwen3-8B"
    assert "/data/Qwen3-8B:/data/Qwen3-8B:ro" in service["volumes"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]


def test_the_image_copies_what_exists_and_runs_without_rights():
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    sources = [
        word for line in re.findall(r"^COPY \S+ (.*)$", text, re.M) for word in line.split()[:-1]
    ]
    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}" in ignored, f"{source} is not sent to docker"
    assert text.index("\nUSER qwenapi") < text.index("\nENTRYPOINT")
    assert re.search(r"HEALTHCHECK .*/readyz", text, re.DOTALL)
