"""Listings, the odd ways: delimiters of any kind, markers that are no keys, encodings, bounds, signs in names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Refused = Callable[..., str]


def fill(s3: Any, bucket: str, *keys: str) -> None:
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"")


def listed(answer: dict[str, Any]) -> tuple[list[str], list[str]]:
    return [e["Key"] for e in answer.get("Contents", [])], [e["Prefix"] for e in answer.get("CommonPrefixes", [])]


@pytest.mark.parametrize("name", ["list_objects", "list_objects_v2"])
def test_delimiters_of_any_kind(s3: Any, bucket: str, name: str) -> None:
    """Not only "/": a letter, a percent sign, a dot, white space, several characters, one that is nowhere."""
    list_of = getattr(s3, name)
    fill(s3, bucket, "bar", "baz", "cab", "foo", "b%r", "a.b", "x y", "one::two", "asdf")
    assert listed(list_of(Bucket=bucket, Delimiter="a"))[1] == ["a", "ba", "ca"]
    assert listed(list_of(Bucket=bucket, Delimiter="a"))[0] == ["b%r", "foo", "one::two", "x y"]
    for delimiter, prefixes in (("%", ["b%"]), (".", ["a."]), (" ", ["x "]), ("::", ["one::"]), ("/", [])):
        answer = list_of(Bucket=bucket, Delimiter=delimiter)
        assert (listed(answer)[1], answer["Delimiter"]) == (prefixes, delimiter)
        assert len(listed(answer)[0]) == 9 - len(prefixes)
    assert listed(list_of(Bucket=bucket, Delimiter=""))[1] == []


@pytest.mark.parametrize("name", ["list_objects", "list_objects_v2"])
def test_prefix_and_delimiter_together(s3: Any, bucket: str, name: str) -> None:
    """A prefix that ends in the delimiter, one that is a key itself, one that is no key's."""
    list_of = getattr(s3, name)
    fill(s3, bucket, "asdf", "boo/bar", "boo/baz/xyzzy", "cquux/thud", "cquux/bla", "quux/", "/top")
    assert listed(list_of(Bucket=bucket, Delimiter="/")) == (["asdf"], ["/", "boo/", "cquux/", "quux/"])
    assert listed(list_of(Bucket=bucket, Delimiter="/", Prefix="boo/")) == (["boo/bar"], ["boo/baz/"])
    assert listed(list_of(Bucket=bucket, Delimiter="/", Prefix="quux/")) == (["quux/"], [])
    assert listed(list_of(Bucket=bucket, Delimiter="/", Prefix="boo/bar")) == (["boo/bar"], [])
    assert listed(list_of(Bucket=bucket, Prefix="boo")) == (["boo/bar", "boo/baz/xyzzy"], [])
    assert listed(list_of(Bucket=bucket, Delimiter="/", Prefix="none")) == ([], [])
    assert listed(list_of(Bucket=bucket, Prefix="/")) == (["/top"], [])


def test_pages_with_prefixes_lose_nothing(s3: Any, bucket: str) -> None:
    """v1 goes on by NextMarker, v2 by tokens; a common prefix at a page's end is not shown again."""
    fill(s3, bucket, "asdf", "boo/bar", "boo/baz/xyzzy", "cquux/bla", "cquux/thud", "zed")
    first = s3.list_objects(Bucket=bucket, Delimiter="/", MaxKeys=2)
    assert (listed(first), first["IsTruncated"], first["NextMarker"]) == ((["asdf"], ["boo/"]), True, "boo/")
    rest = s3.list_objects(Bucket=bucket, Delimiter="/", MaxKeys=2, Marker="boo/")
    assert (listed(rest), rest["IsTruncated"]) == ((["zed"], ["cquux/"]), False)
    first = s3.list_objects_v2(Bucket=bucket, Delimiter="/", MaxKeys=2)
    assert (listed(first), first["KeyCount"]) == ((["asdf"], ["boo/"]), 2)
    token = first["NextContinuationToken"]
    rest = s3.list_objects_v2(Bucket=bucket, Delimiter="/", MaxKeys=2, ContinuationToken=token)
    assert (listed(rest), rest["ContinuationToken"]) == ((["zed"], ["cquux/"]), token)


def test_markers_need_not_be_keys(s3: Any, bucket: str, refused: Refused) -> None:
    """Before all, between two, behind all; a token wins over start-after; one of no sense is refused."""
    fill(s3, bucket, "bar", "baz", "foo", "quxx")
    for marker, keys in (("", ["bar", "baz", "foo", "quxx"]), ("blah", ["foo", "quxx"]), ("zzz", []), ("\n", 4)):
        by_v1, by_v2 = s3.list_objects(Bucket=bucket, Marker=marker), s3.list_objects_v2(
            Bucket=bucket, StartAfter=marker
        )
        for answer in (by_v1, by_v2):
            found = listed(answer)[0]
            assert (len(found) if isinstance(keys, int) else found) == keys
        assert by_v1["Marker"] == marker
    one = s3.list_objects_v2(Bucket=bucket, StartAfter="bar", MaxKeys=1)
    token = one["NextContinuationToken"]
    both = s3.list_objects_v2(Bucket=bucket, StartAfter="quxx", ContinuationToken=token)
    assert listed(both)[0] == ["foo", "quxx"] and "StartAfter" not in both
    for wrong in ("\u20ac", ""):
        assert refused(s3.list_objects_v2, Bucket=bucket, ContinuationToken=wrong) == "InvalidArgument"
    # as AWS encodes, and SDKs undo: a space is "+"
    fill(s3, bucket, "a b+c~/*")
    shown = s3.list_objects_v2(Bucket=bucket, Prefix="a ", EncodingType="url")
    assert [entry["Key"] for entry in shown["Contents"]] == ["a+b%2Bc%7E/*"]


def test_bounds_of_a_page(s3: Any, bucket: str, refused: Refused) -> None:
    """0 is an empty page that is not cut; more than 1,000 counts as 1,000; what is no number is refused."""
    fill(s3, bucket, "a", "b")
    for list_of in (s3.list_objects, s3.list_objects_v2):
        none = list_of(Bucket=bucket, MaxKeys=0)
        assert (listed(none), none["IsTruncated"], none["MaxKeys"]) == (([], []), False, 0)
        assert list_of(Bucket=bucket, MaxKeys=5000)["MaxKeys"] == 1000
        assert refused(list_of, Bucket=bucket, MaxKeys=-1) == "InvalidArgument"
        exact = list_of(Bucket=bucket, MaxKeys=2)
        assert (listed(exact)[0], exact["IsTruncated"]) == (["a", "b"], False)


@pytest.mark.parametrize(
    "key", ["_", " lead", "trail ", "a+b", "a&b<c>", "\u00e9\u4e2d\U0001f600", "a//b", "q?x=y#z", "%41"]
)
def test_names_with_signs(s3: Any, bucket: str, key: str) -> None:
    """What a client may call an object comes back as it was, also through encoding-type=url."""
    s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert listed(s3.list_objects(Bucket=bucket))[0] == [key]
    assert listed(s3.list_objects_v2(Bucket=bucket, Prefix=key[:1]))[0] == [key]
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
    assert s3.list_object_versions(Bucket=bucket)["Versions"][0]["Key"] == key
    s3.delete_object(Bucket=bucket, Key=key)
    assert listed(s3.list_objects_v2(Bucket=bucket))[0] == []


def test_lists_of_versions_go_on_within_a_key(s3: Any, bucket: str, refused: Refused) -> None:
    """By key and version marker, newest first; a version marker alone makes no sense."""
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    made = {key: [s3.put_object(Bucket=bucket, Key=key, Body=b"")["VersionId"] for _ in range(3)] for key in "ab"}
    expected = [(key, version) for key in "ab" for version in reversed(made[key])]
    for size in (1, 2, 4):
        found, markers = [], {}
        while True:
            page = s3.list_object_versions(Bucket=bucket, MaxKeys=size, **markers)
            found += [(v["Key"], v["VersionId"]) for v in page["Versions"]]
            if not page["IsTruncated"]:
                break
            markers = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page.get("NextVersionIdMarker", "")}
        assert found == expected
    grouped = s3.list_object_versions(Bucket=bucket, Prefix="a", Delimiter="z")
    assert [v["IsLatest"] for v in grouped["Versions"]] == [True, False, False]
    assert refused(s3.list_object_versions, Bucket=bucket, VersionIdMarker=made["a"][0]) == "InvalidArgument"
