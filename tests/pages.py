"""The elements of a page that a test reads."""

import base64
import hashlib
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sweeps.page import SORT


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.scripts = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)
            self.tags.pop()
        else:
            self.text += data


def elements_of(page):
    """The elements of a page that loads nothing, and whose one script is that of the project, by its hash."""
    elements = Elements(page)
    assert elements.scripts == [SORT]
    assert not {tag for tag, _ in elements.tags} & {"script", "b", "link", "iframe", "object", "foreignobject"}
    for _, attributes in elements.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert "url(" not in page.replace("url(#", "")
    policy = next(a["content"] for tag, a in elements.tags if tag == "meta" and "content" in a)
    digest = base64.b64encode(hashlib.sha256(SORT.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and policy.endswith(f"; script-src 'sha256-{digest}'")
    return elements


def assert_no_error_in_browser(page: Path, text: str) -> None:
    """Chromium runs the script of a page with this text, and its console has no message: the policy refuses nothing.

    It refuses a script and an image that are added to the page.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("chromium is not installed, which shows the page")
    hostile = page.with_name("hostile.html")
    hostile.write_text(page.read_text().replace("</h1>", "</h1><script>console.log(7)</script><img src=x>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    options.append(f"--user-data-dir={page.with_name('profile')}")
    for file, refused in ((page, False), (hostile, True)):
        done = subprocess.run([browser, *options, f"file://{file}"], capture_output=True, text=True)
        assert text in done.stdout and ("CONSOLE" in done.stderr) == refused, done.stderr
        assert not refused or "violates" in done.stderr
