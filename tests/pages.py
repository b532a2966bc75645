"""The elements of a page that a test reads."""

import base64
import hashlib
from html.parser import HTMLParser

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
