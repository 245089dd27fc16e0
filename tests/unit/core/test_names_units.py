"""Names, ids and units: the checks of what comes from outside."""

import pytest

from tierstore import names, units
from tierstore.errors import ConfigError, RequestError


@pytest.mark.parametrize("name", ["v1", "-", "ab", "A-bucket", "a..b", "10.0.0.1", "-abc", "abc-", "a" * 64, "a_b", ""])
def test_a_bad_bucket_name_is_refused(name: str) -> None:
    """A bucket called v1 would hide the REST API; others break S3 clients."""
    with pytest.raises(RequestError) as caught:
        names.check_bucket_name(name)
    assert caught.value.code == "bad-bucket-name"


@pytest.mark.parametrize("name", ["abc", "my-bucket", "a.b.c", "0ab", "a" * 63])
def test_a_good_bucket_name_is_kept(name: str) -> None:
    """S3's own rules decide."""
    assert names.check_bucket_name(name) == name


@pytest.mark.parametrize("key", ["", "a" * 1025, "é" * 513, "a\x00b", "\ud800"])
def test_a_bad_key_is_refused(key: str) -> None:
    """NUL breaks PostgreSQL text, surrogates break UTF-8, length is counted in bytes."""
    with pytest.raises(RequestError):
        names.check_key(key)


@pytest.mark.parametrize("key", ["a", "../../etc/passwd", "//", "a" * 1024, "é" * 512, " ", "a\nb"])
def test_any_other_key_is_kept_as_it_is(key: str) -> None:
    """Keys are names, not paths: nothing is normalised."""
    assert names.check_key(key) == key


def test_ids_carry_their_birth_and_their_upload() -> None:
    """Collection decides by the age in the id; it must be the upload's."""
    upload = names.upload_id(1_800_000_000_123, 42)
    chunk = names.chunk_id(upload, 7)
    assert len(upload) == names.UPLOAD_ID_BYTES and len(chunk) == names.CHUNK_ID_BYTES
    assert names.allocated_at_ms(chunk) == 1_800_000_000_123
    assert names.upload_of(chunk) == upload
    assert names.allocated_at_ms(names.operation_id(5, 1)) == 5


def test_version_text_sorts_as_the_id_and_round_trips() -> None:
    """Clients compare version texts."""
    small, large = names.VersionId(255), names.VersionId(1 << 60)
    assert names.version_text(small) < names.version_text(large)
    assert names.parse_version(names.version_text(large)) == large
    for bad in ("", "x" * 16, "f" * 16, "0" * 15):
        with pytest.raises(RequestError):
            names.parse_version(bad)


@pytest.mark.parametrize("meta", [{"a": "b\r\nx: y"}, {"a\n": "b"}, {"a": "\x00"}, {"a": "b" * 2048}])
def test_user_metadata_cannot_smuggle_headers(meta: dict[str, str]) -> None:
    """CR and LF would let a writer inject headers into every reader's answer."""
    with pytest.raises(RequestError):
        names.check_user_meta(meta)


@pytest.mark.parametrize(
    ("text", "size"), [("8MiB", 8 << 20), ("1GB", 10**9), ("4096", 4096), (17, 17), ("1.5 KiB", 1536), ("2t", 2 << 40)]
)
def test_sizes_are_read_with_units(text: str | int, size: int) -> None:
    """Binary and decimal units mean what they say."""
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10), ("250ms", 0.25), ("1h", 3600), ("7d", 604800), (3, 3), ("5m", 300)]
)
def test_times_are_read_with_units(text: str | float, seconds: float) -> None:
    """A bare number is seconds."""
    assert units.parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "8 MiBs", "-1", "x", "1e9", "MiB"])
def test_what_is_no_size_or_time_is_a_configuration_error(text: str) -> None:
    """The error shows how to write it."""
    with pytest.raises(ConfigError):
        units.parse_size(text)
    with pytest.raises(ConfigError):
        units.parse_seconds(text)


def test_rates_and_formats_read_back() -> None:
    """What is printed is what an operator may write."""
    assert units.parse_rate("50MiB/s") == 50 << 20
    assert units.format_size(1536) == "1.5 KiB"
    assert units.format_seconds(75) == "1 min 15 s"
