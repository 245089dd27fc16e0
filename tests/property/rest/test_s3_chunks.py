"""The aws-chunked decoder: whatever the cuts, the same bytes; whatever the bytes, an answer and no crash."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tierstore.gateway.s3.body import ChunkedDecoder
from tierstore.gateway.s3.errors import S3Error


def _feed(body: bytes, cuts: list[int], *, has_trailer: bool) -> tuple[bytes, ChunkedDecoder]:
    out = bytearray()
    decoder = ChunkedDecoder(None, lambda piece: out.extend(piece), has_trailer=has_trailer)
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    for low, high in itertools.pairwise(places):
        decoder.feed(memoryview(body[low:high]))
    decoder.finish()
    return bytes(out), decoder


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=8), st.lists(st.integers(0, 5000)), st.booleans())
def test_any_cut_of_a_body_gives_the_same_bytes(pieces: list[bytes], cuts: list[int], has_trailer: bool) -> None:
    """The network cuts where it likes."""
    body = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\n"
    body += b"x-amz-checksum-crc32:AAAAAA==\r\n\r\n" if has_trailer else b"\r\n"
    data, decoder = _feed(body, cuts, has_trailer=has_trailer)
    assert data == b"".join(pieces)
    assert decoder.trailers == ({"x-amz-checksum-crc32": "AAAAAA=="} if has_trailer else {})


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_decoded_or_refused(body: bytes, has_trailer: bool) -> None:
    """A malformed body must be a 4xx."""
    try:
        _feed(body, [], has_trailer=has_trailer)
    except S3Error as error:
        assert error.status == 400
