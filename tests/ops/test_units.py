"""The unit files as systemd reads them, and the command that puts them in place."""

import configparser
import os
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwenapi.commands.units import UNITS
from qwenapi.settings.table import Settings

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("qwenapi-model@.service", "qwenapi-http@.service")
# The scores that the page on reliability gives, as bounds.
MOST_EXPOSED = {
    name: float(score)
    for name, score in re.findall(
        r"^\| `(\S+\.service)` \| ([\d.]+) \|$",
        (ROOT / "docs/reliability.md").read_text("utf-8"),
        re.MULTILINE,
    )
}


def install(*flags, user=None):
    user = user or pwd.getpwuid(os.getuid()).pw_name
    command = [sys.executable, "-m", "qwenapi", "install-units", "--user", user, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def analyze(*arguments, units=None):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    environ = os.environ | ({"SYSTEMD_UNIT_PATH": f"{units}:"} if units else {})
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)


def directives(path):
    """Return the last value of each directive of a unit file."""
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(path, encoding="utf-8")
    return {key: value for section in parser.sections() for key, value in parser[section].items()}


@pytest.fixture
def installed(tmp_path):
    done = install("--layout", "coder", "--destination", tmp_path / "system")
    assert done.returncode == 0, done.stderr
    return tmp_path / "system"


def test_systemd_has_nothing_to_say_against_the_units(installed):
    instances = [name.replace("@", "@coder") for name in UNITS]
    done = analyze("verify", "--man=no", *instances, "qwen_coder_api.service", units=installed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("example", sorted((ROOT / "systemd" / "examples").iterdir()))
def test_systemd_has_nothing_to_say_against_the_drop_ins(installed, example):
    kind = "socket" if "socket" in example.name else "service"
    half = "model" if example.name.startswith("model") else "http"
    unit = f"qwenapi-{half}@coder.{kind}"
    folder = installed / f"{unit}.d"
    folder.mkdir(exist_ok=True)
    shutil.copy(example, folder)
    done = analyze("verify", "--man=no", unit, units=installed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", SERVICES)
def test_the_services_expose_little(name):
    done = analyze("security", "--offline=yes", ROOT / "systemd" / name)
    found = re.search(r"exposure level for \S+: (\d+\.\d+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSED[name]


@pytest.mark.parametrize("name", SERVICES)
def test_what_the_supervisor_counts_on_is_in_the_units(name):
    values = directives(ROOT / "systemd" / name)
    assert values["Type"] == "notify" and values["NotifyAccess"] == "main"
    assert values["RestartPreventExitStatus"] == "78"
    assert values["KillMode"] == "mixed"
    assert values["RuntimeDirectoryPreserve"] == "restart"
    assert Settings().drain_timeout < int(values["TimeoutStopSec"])
    assert int(values["WatchdogSec"]) > 0
    # A start must not install anything: the folder is read-only and there is no network.
    assert "bin/qwenapi" not in values["ExecStart"]


def test_the_model_half_may_make_code_at_run_time_and_the_http_half_may_not():
    model, http = (directives(ROOT / "systemd" / name) for name in SERVICES)
    assert "MemoryDenyWriteExecute" not in model
    assert http["MemoryDenyWriteExecute"] == "yes"
    assert model["RuntimeDirectory"] == "qwenapi/model-%i"
    assert http["Environment"] and "QWENAPI_MODEL_RUN_DIR=%t/qwenapi/model-%i" in (
        ROOT / "systemd" / SERVICES[1]
    ).read_text(encoding="utf-8")


def test_prefix_user_and_groups_take_the_place_of_the_defaults(tmp_path):
    shown = install(
        "--dry-run", "--prefix", "/srv/q", "--group", "staff", "--web-group", "web", user="somebody"
    )
    assert shown.returncode == 0, shown.stderr
    text = shown.stdout
    assert "ExecStart=/srv/q/.venv/bin/python -P -m qwenapi model\n" in text
    assert "/opt/qwenapi" not in text
    assert text.count("\nUser=somebody\nGroup=staff\n") == 2
    assert "\nSocketUser=somebody\n" in text and "\nSocketGroup=web\n" in text
    assert not list(tmp_path.iterdir())


def test_a_second_run_changes_nothing_and_a_changed_file_is_kept(installed):
    again = ("--layout", "coder", "--destination", installed)
    assert "written:" not in install(*again).stdout
    unit = installed / SERVICES[0]
    unit.write_text(unit.read_text(encoding="utf-8").replace("WatchdogSec=15", "WatchdogSec=99"))
    other = installed / SERVICES[1]
    before = other.read_text(encoding="utf-8")
    refused = install(*again, "--group", "staff")
    assert refused.returncode == 78 and str(unit) in refused.stderr and "--force" in refused.stderr
    assert "WatchdogSec=99" in unit.read_text(encoding="utf-8")
    assert other.read_text(encoding="utf-8") == before, "written though another was refused"
    assert install(*again, "--force").returncode == 0
    assert "WatchdogSec=15" in unit.read_text(encoding="utf-8")


def test_a_file_that_nobody_changed_is_renewed(installed):
    done = install("--layout", "coder", "--destination", installed, "--group", "staff")
    assert done.returncode == 0, done.stderr
    assert "\nGroup=staff\n" in (installed / SERVICES[0]).read_text(encoding="utf-8")


def test_what_cannot_be_done_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for flags, user, said in (
        (("--destination", tmp_path / "file" / "below"), None, "run it as root"),
        (("--destination", tmp_path / "a"), "nobody-here", "useradd --system nobody-here"),
        (("--destination", tmp_path / "a", "--prefix", "/nowhere"), None, "bin/setup"),
        (("--destination", tmp_path / "a", "--prefix", "/srv/a b"), None, "letters"),
        (("--destination", tmp_path / "a", "--group", "a\nUser=root"), None, "--group"),
    ):
        done = install(*flags, user=user)
        assert done.returncode == 78 and said in done.stderr, done.stderr
        assert done.stderr.count("\n") <= 2 and "Traceback" not in done.stderr
    assert not (tmp_path / "a").exists()


def test_the_layouts_place_wrappers_under_the_documents_names(tmp_path, start_server):
    for layout in ("ai-agent", "machine"):
        done = install("--layout", layout, "--destination", tmp_path / layout)
        assert done.returncode == 0, done.stderr
    server = start_server("--stub", "--profile", "qwen2")
    client = tmp_path / "ai-agent" / "src" / "api_examples.py"
    question = [sys.executable, client, "--url", server.url, "--prompt", "阶乘"]
    answer = subprocess.run([*question, "--max-length", "9"], capture_output=True, timeout=120)
    assert answer.returncode == 0 and answer.stdout.strip(), answer.stderr
    check = [tmp_path / "machine" / "scripts" / "check-service.sh", "--url", server.url]
    assert subprocess.run(check, capture_output=True, timeout=60).returncode == 0


def test_the_known_name_of_document_000_moves_both_halves(installed):
    wrapper = directives(installed / "qwen_coder_api.service")
    for half in ("model", "http"):
        unit = f"qwenapi-{half}@coder.service"
        assert unit in wrapper["Wants"]
        drop_in = directives(installed / f"{unit}.d" / "qwen_coder_api.conf")
        assert drop_in["PartOf"] == "qwen_coder_api.service"
