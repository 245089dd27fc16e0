"""Keys of encrypted objects: what a request asks for, the local master keys, data keys sealed under them.

Envelope encryption: every object has a random data key of its own, kept in its metadata sealed by AES-256-GCM under a
master key (SSE-S3, SSE-KMS) or under the customer's key (SSE-C), which is kept nowhere: the wrong one does not open the
data key. Master keys come from a file of the operator's; the first is the default, others stay for reading.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tierstore.errors import ConfigError
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.request import Call
from tierstore.gateway.s3.sse_format import KEY_BYTES
from tierstore.wire.names import BucketView, ObjectMeta

#: Name in ObjectMeta.extra; document of a bucket: JSON [algorithm, key id].
SEALED: Final = "s3.sse"
DEFAULT: Final = "s3.encryption"
#: Document of a bucket: "SSE-C" where nothing may be written under customers' keys, "NONE" where that was said.
BLOCKED: Final = "s3.encryption-blocked"
BLOCKS_CUSTOMER: Final = "SSE-C"
S3: Final = "AES256"
KMS: Final = "aws:kms"
CUSTOMER: Final = "C"
_NONCE_BYTES: Final = 12
_HEADER: Final = b"x-amz-server-side-encryption"
_CUSTOMER: Final = b"x-amz-server-side-encryption-customer-"
_SOURCE_CUSTOMER: Final = b"x-amz-copy-source-server-side-encryption-customer-"


class Sealed(msgspec.Struct, array_like=True, frozen=True):
    """How an object is encrypted. data_key: sealed; is_parts: each part is a stream with a header."""

    kind: str
    key_id: str
    data_key: bytes
    is_parts: bool = False
    key_md5: str = ""       # of a customer's key, as he sent it


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks for. kind "": nothing."""

    kind: str = ""
    key_id: str = ""
    customer_key: bytes = b""
    key_md5: str = ""


_KEYS: Final = frozenset(_CUSTOMER + part for part in (b"algorithm", b"key", b"key-md5"))
_KEYS_OF_SOURCE: Final = frozenset(_SOURCE_CUSTOMER + part for part in (b"algorithm", b"key", b"key-md5"))
_ASKING: Final = _KEYS | {_HEADER, _HEADER + b"-aws-kms-key-id"}
_NOTHING: Final = Wish()


class MasterKeys:
    """text: `name:base64 of 32 bytes`, separated by white space; "": SSE-S3 and SSE-KMS are refused."""

    def __init__(self, text: str) -> None:
        self._keys: dict[str, bytes] = {}
        for entry in text.split():
            name, _, value = entry.partition(":")
            try:
                key = base64.b64decode(value, validate=True)
            except ValueError:
                key = b""
            if not name or len(key) != KEY_BYTES:
                raise ConfigError("s3.master_keys: write each key as NAME:BASE64, of 32 random bytes")
            self._keys[name] = key
        self.default = next(iter(self._keys), "")

    def key(self, name: str) -> bytes:
        """Raises S3Error for a key that is not there."""
        if not self._keys:
            raise S3Error("NotImplemented", "This gateway has no master keys (s3.master_keys).")
        if name not in self._keys:
            raise S3Error("KMS.NotFoundException", "The master key is not known here.", 400)
        return self._keys[name]


class Vault:
    """Makes and opens data keys. One per gateway process."""

    def __init__(self, masters: MasterKeys, *, customer_keys_over_http: bool) -> None:
        self._masters = masters
        self._over_http = customer_keys_over_http

    def wish(self, call: Call, bucket: BucketView | None = None) -> Wish:
        """What a PUT, copy or CreateMultipartUpload asks for, else the bucket's default. Raises S3Error."""
        if call.header_names.isdisjoint(_ASKING):
            return default_of(bucket)
        customer = self.customer(call)
        algorithm, key_id = call.header(_HEADER), call.header(_HEADER + b"-aws-kms-key-id")
        if customer.kind:
            if algorithm is not None:
                raise S3Error("InvalidArgument", "Server Side Encryption with Customer provided key is incompatible "
                              "with the encryption method specified")  # fmt: skip
            if bucket is not None and bucket.config.get(BLOCKED) == BLOCKS_CUSTOMER:
                raise S3Error("AccessDenied", "This bucket takes no objects under customers' keys (SSE-C): the "
                              "encryption type is blocked by its encryption configuration.")  # fmt: skip
            return customer
        if algorithm is None:
            if key_id is not None:
                raise S3Error("InvalidArgument", "x-amz-server-side-encryption-aws-kms-key-id needs "
                              "x-amz-server-side-encryption: aws:kms")  # fmt: skip
            return default_of(bucket)
        if algorithm not in (S3, KMS):
            raise S3Error("InvalidArgument", "The encryption method specified is not supported",
                          ArgumentName=_HEADER.decode(), ArgumentValue=algorithm[:40])  # fmt: skip
        if algorithm == S3 and key_id is not None:
            raise S3Error("InvalidArgument", "A key id goes with aws:kms only")
        return Wish(algorithm, key_id or "")

    def customer(self, call: Call, *, of_source: bool = False) -> Wish:
        """The customer's key that a request brings. Raises S3Error."""
        if call.header_names.isdisjoint(_KEYS_OF_SOURCE if of_source else _KEYS):
            return _NOTHING
        prefix = _SOURCE_CUSTOMER if of_source else _CUSTOMER
        algorithm, key, md5 = (call.header(prefix + part) for part in (b"algorithm", b"key", b"key-md5"))
        if not self._over_http:
            raise S3Error("InvalidRequest", "Requests specifying Server Side Encryption with Customer provided keys "
                          "must be made over a secure connection.")  # fmt: skip
        if algorithm != "AES256":
            raise S3Error("InvalidArgument", "Requests specifying Server Side Encryption with Customer provided keys "
                          "must provide a valid encryption algorithm.")  # fmt: skip
        try:
            raw = base64.b64decode((key or "").encode(), validate=True)
        except ValueError:
            raw = b""
        if len(raw) != KEY_BYTES:
            raise S3Error("InvalidArgument", "The secret key was invalid for the specified algorithm.")
        digest = base64.b64encode(hashlib.md5(raw, usedforsecurity=False).digest()).decode()
        if not hmac.compare_digest(digest, md5 or ""):
            raise S3Error("InvalidArgument", "The calculated MD5 hash of the key did not match the hash that was "
                          "provided.")  # fmt: skip
        return Wish(CUSTOMER, "", raw, digest)

    def seal(self, wish: Wish, *, is_parts: bool = False) -> tuple[Sealed, bytes]:
        """A new data key, and how it is kept. Raises S3Error."""
        data_key, nonce = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(_NONCE_BYTES)
        name = wish.key_id.rpartition("/")[2] or self._masters.default
        master = wish.customer_key if wish.kind == CUSTOMER else self._masters.key(name)
        kept = nonce + AESGCM(master).encrypt(nonce, data_key, wish.kind.encode())
        return Sealed(wish.kind, "" if wish.kind == CUSTOMER else name, kept, is_parts, wish.key_md5), data_key

    def open(self, sealed: Sealed, customer: Wish) -> bytes:
        """The data key. customer: the key that the request brings. Raises S3Error as AWS does for a wrong or missing
        one."""
        if sealed.kind == CUSTOMER and not customer.kind:
            raise S3Error("InvalidRequest", "The object was stored using a form of Server Side Encryption. The correct "
                          "parameters must be provided to retrieve the object.")  # fmt: skip
        if sealed.kind != CUSTOMER and customer.kind:
            raise S3Error("InvalidRequest", "The encryption parameters are not applicable to this object.")
        master = customer.customer_key if sealed.kind == CUSTOMER else self._masters.key(sealed.key_id)
        nonce, kept = sealed.data_key[:_NONCE_BYTES], sealed.data_key[_NONCE_BYTES:]
        try:
            return AESGCM(master).decrypt(nonce, kept, sealed.kind.encode())
        except InvalidTag:
            raise S3Error("AccessDenied", "The key does not open this object.") from None


def default_of(bucket: BucketView | None) -> Wish:
    """The default encryption of a bucket."""
    text = bucket.config.get(DEFAULT) if bucket is not None else None
    return Wish(*msgspec.json.decode(text, type=tuple[str, str])) if text else _NOTHING


def sealed_of(meta: ObjectMeta | None) -> Sealed | None:
    raw = meta.extra.get(SEALED) if meta is not None and meta.extra else None
    return None if raw is None else msgspec.msgpack.decode(raw, type=Sealed)


def with_sealed(meta: ObjectMeta, sealed: Sealed) -> ObjectMeta:
    return msgspec.structs.replace(meta, extra={**meta.extra, SEALED: msgspec.msgpack.encode(sealed)})


def sealed_lines(sealed: Sealed | None) -> list[str]:
    """The header lines by which an answer says how the object is encrypted."""
    if sealed is None:
        return []
    if sealed.kind == CUSTOMER:
        prefix = _CUSTOMER.decode()
        return [f"{prefix}algorithm: AES256", f"{prefix}key-md5: {sealed.key_md5}"]
    lines = [f"{_HEADER.decode()}: {sealed.kind}"]
    if sealed.kind == KMS:
        lines.append(f"{_HEADER.decode()}-aws-kms-key-id: {sealed.key_id}")
    return lines


def etag_of(md5: str, sealed: Sealed, data_key: bytes) -> str:
    """The ETag of an encrypted body: its MD5 for SSE-S3, as AWS has it; else nothing that speaks of the plain bytes."""
    if sealed.kind == S3:
        return md5
    return hmac.new(data_key, md5.encode(), hashlib.sha256).hexdigest()[:32]
