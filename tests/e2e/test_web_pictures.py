"""Pictures on the chat page in a real browser: chosen, pasted, dropped, shown, sent, refused."""

import base64

import pytest

from tests.e2e.browser.chromium import browser_fixture  # noqa: F401
from tests.images.pictures import file_of, noise
from tests.running_server import RunningServer
from tests.seeing_folder import write_folder

PICTURE = base64.b64encode(file_of(noise(64, 40))).decode()
# Of noise that no PNG makes small.
LARGE = base64.b64encode(file_of(noise(2600, 1300), "JPEG", quality=100)).decode()
# What a reader's clipboard, mouse or dialog gives a page.
FILE = """
const files = new DataTransfer();
const bytes = Uint8Array.from(atob("{data}"), (c) => c.charCodeAt(0));
files.items.add(new File([bytes], "{name}", {{ type: "{kind}" }}));
"""
CHOOSE = """
const input = document.getElementById("picture-file");
input.files = files.files;
input.dispatchEvent(new Event("change"));
"""
PASTE = """
document.getElementById("input").dispatchEvent(
  new ClipboardEvent("paste", { clipboardData: files, bubbles: true, cancelable: true }));
"""
DROP = """
document.getElementById("chat").dispatchEvent(
  new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
"""
WAIT = """
new Promise((resolve) => {{
  const look = () => ({condition}) ? resolve() : setTimeout(look, 20);
  look();
}})
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeing")
    write_folder(folder)
    run_dir = tmp_path_factory.mktemp("page") / "run"
    flags = ("--stub", "--model", str(folder), "--served-model-name", "seer")
    server = RunningServer(run_dir, *flags, "--max-model-len", "2000")
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


def give(page, how, data=PICTURE, name="a.png", kind="image/png"):
    script = FILE.format(data=data, name=name, kind=kind) + how
    page.ask("evaluate", script=f"(() => {{{script}}})()")


def wait_until(page, condition):
    page.ask("evaluate", script=WAIT.format(condition=condition))


def thumbnails(count):
    return f"document.querySelectorAll('.thumbnail img').length === {count}"


def test_pictures_are_shown_sent_and_remembered(browser, server):
    with browser.open(server.url + "/ui/") as page:
        for count, how in enumerate((CHOOSE, PASTE, DROP), start=1):
            give(page, how)
            wait_until(page, thumbnails(count))
        page.ask("click", selector=".thumbnail button")
        wait_until(page, thumbnails(2))
        page.ask("send", text="what is it")
        page.ask("waitForText", text="what is it")
        assert page.ask("count", selector=".thumbnail") == 0
        assert page.ask("count", selector=".message.user .pictures img") == 2
        wait_until(page, "!document.querySelector('.message.streaming')")
        page.ask("send", text="and now")
        page.ask("waitForText", text="and now")
        first, second = page.ask("requests")
        (asked,) = first["messages"]
        assert [part["type"] for part in asked["content"]] == ["image_url", "image_url", "text"]
        assert asked["content"][0]["image_url"]["url"] == f"data:image/png;base64,{PICTURE}"
        assert second["messages"][0] == asked and second["messages"][2]["content"] == "and now"


def test_a_picture_alone_is_sent_and_a_large_one_made_smaller(browser, server):
    with browser.open(server.url + "/ui/") as page:
        give(page, CHOOSE, LARGE, "large.jpg", "image/jpeg")
        wait_until(page, thumbnails(1))
        page.ask("click", selector="#send-btn")
        wait_until(page, "document.querySelector('.message.bot:not(.streaming)')")
        (request,) = page.ask("requests")
        (part,) = request["messages"][0]["content"]
        url = part["image_url"]["url"]
        assert url.startswith("data:image/jpeg;base64,") and len(url) < len(LARGE)


def test_what_is_no_picture_is_said(browser, server):
    with browser.open(server.url + "/ui/") as page:
        give(page, DROP, base64.b64encode(b"hello").decode(), "a.txt", "text/plain")
        wait_until(page, "!document.getElementById('picture-notice').hidden")
        assert "cannot be sent" in page.ask("text", selector="#picture-notice")
        give(page, DROP, base64.b64encode(b"hello").decode())  # no PNG, whatever it says
        wait_until(page, "!document.getElementById('picture-notice').hidden")
        assert page.ask("count", selector=".thumbnail") == 0


def test_a_model_that_takes_text_only_is_named_as_such(browser, stub_server):
    with browser.open(stub_server.url + "/ui/") as page:
        give(page, PASTE)
        wait_until(page, "!document.getElementById('picture-notice').hidden")
        assert "text only" in page.ask("text", selector="#picture-notice")
        assert page.ask("count", selector=".thumbnail") == 0
        assert not page.ask("requests")
