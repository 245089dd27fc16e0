"""Packed bodies: what is packed comes back, what is torn is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.catalog.packed import PackedChunk, Replica, first_devices, give_replicas, pack, pack_new, placed, unpack
from tierstore.errors import IntegrityError

_u32 = st.integers(0, 2**32 - 1)
_replicas = st.builds(
    Replica, device=_u32, role=st.integers(0, 1), state=st.integers(0, 2), generation=st.integers(0, 65535),
    segment=_u32, offset=st.integers(0, 2**64 - 1),
)  # fmt: skip
_chunks = st.builds(
    PackedChunk, id=st.binary(min_size=16, max_size=16), length=_u32, chunk_bytes=_u32, crc32c=_u32,
    redundancy=st.integers(0, 255), replicas=st.lists(_replicas, max_size=5).map(tuple),
)  # fmt: skip


@given(st.lists(_chunks, max_size=8))
def test_what_is_packed_comes_back(chunks: list[PackedChunk]) -> None:
    """Every object row rests on this form."""
    packed = pack(chunks)
    assert unpack(packed) == chunks
    first = list(first_devices(packed))
    assert first == ([r.device for r in chunks[0].replicas] if chunks else [])
    assert placed(packed) == [(r.device, c.id, c.chunk_bytes) for c in chunks for r in c.replicas]


@given(st.lists(_chunks, min_size=1, max_size=3), st.data())
def test_a_torn_body_is_refused(chunks: list[PackedChunk], data: st.DataObject) -> None:
    """Reading half a body as a whole one would serve a short object."""
    packed = pack(chunks)
    whole = {0}
    for chunk in chunks:
        whole.add(max(whole) + len(pack([chunk])))
    cut = data.draw(st.integers(1, len(packed) - 1).filter(lambda at: at not in whole))
    for read in (unpack, placed):
        with pytest.raises(IntegrityError):
            read(packed[:cut])


def test_the_quick_form_of_the_commit_is_the_same() -> None:
    """Two writers of one form must agree."""
    places = [(1, 0, 2, 3), (4, 1, 5, 6), (7, 1, 8, 9)]
    for count in range(4):
        quick = pack_new(b"c" * 16, 5, 6, places[:count])
        replicas = tuple(Replica(device, role, 0, 1, *rest) for device, role, *rest in places[:count])
        assert unpack(quick) == [PackedChunk(b"c" * 16, 5, 5, 6, 0, replicas)]


@given(st.lists(_chunks, min_size=1, max_size=4, unique_by=lambda c: c.id), st.lists(_replicas, max_size=5), st.data())
def test_a_chunk_gets_other_replicas_and_the_rest_of_its_body_stays(
    chunks: list[PackedChunk], replicas: list[Replica], data: st.DataObject
) -> None:
    """Every copy that is made or let go rewrites a body this way; the other chunks of the object stand in it too."""
    at = data.draw(st.integers(0, len(chunks) - 1))
    wanted = [c.with_replicas(replicas) if number == at else c for number, c in enumerate(chunks)]
    assert unpack(give_replicas(pack(chunks), chunks[at].id, replicas)) == wanted
    others = pack(chunks[:at] + chunks[at + 1 :])
    assert give_replicas(others, chunks[at].id, replicas) == b"", "it is not in it"
