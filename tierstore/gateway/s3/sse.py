"""Encryption of one body under way: the target that seals it, and what its metadata, ETag and answer say of that."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from tierstore.gateway.s3.sse_format import SALT_BYTES, Encryptor, header_of, part_key, stream_bytes
from tierstore.gateway.s3.sse_keys import Sealed, Vault, Wish, etag_of, sealed_lines, with_sealed
from tierstore.gateway.upload import Pushed
from tierstore.wire.names import ObjectMeta
from tierstore.wire.s3 import marked_etag


@dataclass(frozen=True, slots=True)
class Cover:
    """How a body is stored: in clear when sealed is None. header: of a part's stream."""

    sealed: Sealed | None = None
    data_key: bytes = b""
    header: bytes = b""

    def stored_bytes(self, size: int) -> int:
        return size if self.sealed is None else stream_bytes(size, has_header=bool(self.header))

    def target(self, walk: Pushed, size: int) -> Pushed:
        """Where plain bytes are pushed."""
        if self.sealed is None:
            return walk
        key = part_key(self.data_key, self.header) if self.header else self.data_key
        return Encryptor(walk, key, size, header=self.header)

    def etag(self, md5: str) -> str:
        """What clients see."""
        return md5 if self.sealed is None else etag_of(md5, self.sealed, self.data_key)

    def stored_etag(self, etag: str, size: int) -> str:
        return etag if self.sealed is None else marked_etag(etag, size)

    def meta(self, meta: ObjectMeta) -> ObjectMeta:
        return meta if self.sealed is None else with_sealed(meta, self.sealed)

    @property
    def lines(self) -> str:
        return "".join(f"{line}\r\n" for line in sealed_lines(self.sealed))


def cover_of(vault: Vault, wish: Wish) -> Cover:
    """For a whole object. Raises S3Error for a master key that is not there."""
    return Cover(*vault.seal(wish)) if wish.kind else Cover()


def part_cover(sealed: Sealed | None, data_key: bytes) -> Cover:
    """For a part of an upload."""
    return Cover() if sealed is None else Cover(sealed, data_key, header_of(secrets.token_bytes(SALT_BYTES)))
