"""The storage class of a row, told from its packed metadata."""

from __future__ import annotations

import pytest

from tierstore.wire import encode
from tierstore.wire.names import ObjectMeta
from tierstore.wire.storage_class import STORAGE_CLASS, STORAGE_CLASSES, class_of, packed_class


@pytest.mark.parametrize("name", sorted(STORAGE_CLASSES))
def test_a_class_is_told_without_decoding(name: str) -> None:
    """A listing of a thousand names must not decode a thousand rows, nor show another class than HEAD does."""
    extra = {"s3.owner": b"somebody", STORAGE_CLASS: name.encode(), "s3.parts": b"\x91\x92\x01\x02"}
    meta = ObjectMeta("text/plain", {"a": "b"}, extra=extra)
    assert packed_class(encode(meta)) == class_of(meta) == name


def test_what_clients_write_is_no_class() -> None:
    """User metadata and tags are text, attributes of files any bytes: none of them makes a class."""
    text = "\u00a8s3.class\u0107GLACIER"
    meta = ObjectMeta(user_meta={STORAGE_CLASS: "GLACIER", text: text}, tags={STORAGE_CLASS: "GLACIER"})
    assert packed_class(encode(meta)) == class_of(meta) == ""
    forged = ObjectMeta(extra={"posix.x": b"\xa8s3.class\xc4\x04\xff\xff\xff\xff"})
    assert packed_class(encode(forged)) == ""
    assert packed_class(None) == class_of(None) == ""
