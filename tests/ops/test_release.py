"""The hashed versions of a release are those that the tests ran with, and all that it needs."""

import configparser
import re

from tests.docs.pages import ROOT

PIN = re.compile(r"^([\w.-]+)==(\S+?)(?: \\)?$", re.MULTILINE)


def pins(name):
    """Return the versions of a file of requirements, by package."""
    text = (ROOT / name).read_text("utf-8")
    return {re.sub("[._]", "-", name.lower()): version for name, version in PIN.findall(text)}


def test_each_version_is_the_tested_one():
    tested, released = pins("etc/constraints.txt"), pins("etc/release.txt")
    assert released and released.items() <= tested.items()


def test_each_package_has_hashes():
    text = (ROOT / "etc/release.txt").read_text("utf-8")
    for block in re.split(r"\n(?=[\w.-]+==)", text)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block.splitlines()[0]


def test_all_that_runs_is_there_but_torch():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    asked = parser["options"]["install_requires"].split()
    extras = parser["options.extras_require"]
    asked += [*extras["redis"].split(), *extras["otel"].split()]
    names = {re.split(r"[\[<>=]", name)[0].lower() for name in asked}
    assert names - set(pins("etc/release.txt")) == {"torch"}
