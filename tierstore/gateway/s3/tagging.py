"""The tag set document of buckets and objects."""

from __future__ import annotations

from tierstore.gateway.s3 import documents
from tierstore.gateway.s3.documents import element
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.object_meta import check_tags


def parse_tagging(body: bytes, *, most: int = 10) -> dict[str, str]:
    root = documents.parse(body, "Tagging")
    tag_set = root.one("TagSet")
    if tag_set is None:
        raise S3Error("MalformedXML")
    pairs = []
    for tag in tag_set.all("Tag"):
        key, value = tag.text("Key"), tag.text("Value")
        if key is None or value is None:
            raise S3Error("MalformedXML")
        pairs.append((key, value))
    return check_tags(pairs, most=most)


def tagging_document(tags: dict[str, str]) -> bytes:
    """By name: S3 promises no order, and clients that compare lists find one."""
    listed = "".join(f"<Tag>{element('Key', key)}{element('Value', tags[key])}</Tag>" for key in sorted(tags))
    return documents.document("Tagging", f"<TagSet>{listed}</TagSet>")
