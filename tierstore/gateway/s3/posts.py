"""PostObject: an upload by an HTML form. Fields and policy are judged before a byte of the file is stored.

A form's length says nothing of its file's, so bodies stream with their size unknown, as chunked ones do.
"""

from __future__ import annotations

import asyncio
import dataclasses
from concurrent.futures import Executor
from typing import Final, cast
from urllib.parse import quote, urlsplit

import msgspec

from tierstore.auth.access import ANONYMOUS
from tierstore.gateway.s3 import documents, rights
from tierstore.gateway.s3.acl import Acls
from tierstore.gateway.s3.answers import checksum_lines, version_line, with_checksum
from tierstore.gateway.s3.auth import Authenticator
from tierstore.gateway.s3.body import BodyPump, Hasher
from tierstore.gateway.s3.catalog import S3Catalog
from tierstore.gateway.s3.documents import element
from tierstore.gateway.s3.errors import XML_LINE, S3Error
from tierstore.gateway.s3.forms import FormDecoder, FormPolicy, boundary_of
from tierstore.gateway.s3.lock_forms import locked_meta
from tierstore.gateway.s3.object_meta import meta_of
from tierstore.gateway.s3.request import Call
from tierstore.gateway.s3.sse import cover_of
from tierstore.gateway.s3.sse_format import Encryptor
from tierstore.gateway.s3.sse_keys import Vault
from tierstore.gateway.s3.tagging import parse_tagging
from tierstore.gateway.s3.uploads import PUT_BYTES_MAX, Promise, Received, checked, form_promise
from tierstore.gateway.upload import Pushed
from tierstore.names import check_key
from tierstore.sdk.store import Store
from tierstore.serving.exchange import Exchange
from tierstore.wire.s3 import BY_POST, MADE_BY
from tierstore.wire.storage_class import class_of

FIELDS_SECONDS: Final = 60.0
_RENAMED: Final = {"acl": "x-amz-acl"}
#: Headers that policies look at and no field replaces.
_OF_CALLER: Final = frozenset({b"referer", b"user-agent"})
_ALGORITHM: Final = "AWS4-HMAC-SHA256"


class _Limited:
    """Refuses a file that grows beyond what the policy allows while it comes."""

    def __init__(self, target: Pushed, most_bytes: int) -> None:
        self._target = target
        self._left = most_bytes

    def push(self, piece: memoryview) -> bool:
        self._left -= len(piece)
        if self._left < 0:
            raise S3Error("EntityTooLarge")
        return self._target.push(piece)

    async def has_room(self) -> None:
        await self._target.has_room()


class _Form:
    """The sink of a form: fields until the file begins, then everything goes on to a pump."""

    def __init__(self, exchange: Exchange, boundary: bytes) -> None:
        self.decoder = FormDecoder(boundary, self._file_begins)
        self._exchange = exchange
        self._has_fields = asyncio.get_running_loop().create_future()
        self._pump: BodyPump | None = None
        self._held: list[bytes] = []
        self._is_complete = False
        self._error: BaseException | None = None

    async def fields(self) -> dict[str, str]:
        """All fields before the file. Raises S3Error."""
        async with asyncio.timeout(FIELDS_SECONDS):
            await self._has_fields
        return self.decoder.fields

    def go_on(self, pump: BodyPump) -> None:
        """The file's bytes go to the pump (which has set decoder.take), also those that came already."""
        self._pump = pump
        held, self._held = self._held, []
        for piece in held:      # decoded already
            self.decoder.take(memoryview(piece))
        if self._error is not None:
            pump.aborted(self._error)
        elif self._is_complete:
            pump.complete()
        else:
            self._exchange.resume_body()

    def _file_begins(self) -> None:
        self.decoder.take = lambda piece: self._held.append(bytes(piece))
        self._exchange.pause_body()
        if not self._has_fields.done():
            self._has_fields.set_result(None)

    # -- BodySink -------------------------------------------------------------------------------------------
    def data(self, piece: memoryview) -> None:
        if self._pump is not None:
            self._pump.data(piece)
            return
        try:
            self.decoder.feed(piece)
        except Exception as error:  # whatever it is, fields() raises it and the door answers with it, once
            self._fail(error)

    def complete(self) -> None:
        self._is_complete = True
        if self._pump is not None:
            self._pump.complete()
        elif not self._has_fields.done():
            self._fail(S3Error("InvalidArgument", "POST requires exactly one file upload per request."))

    def aborted(self, error: BaseException) -> None:
        if self._pump is not None:
            self._pump.aborted(error)
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._error = error
        if not self._has_fields.done():
            self._has_fields.set_exception(error)


class Posts:
    """The handler of forms."""

    def __init__(
        self, store: Store, catalog: S3Catalog, vault: Vault, *, executor: Executor | None, auth: Authenticator,
        acls: Acls,
    ) -> None:  # fmt: skip
        self._store = store
        self._catalog = catalog
        self._vault = vault
        self._executor = executor
        self._auth = auth
        self._acls = acls

    async def post(self, call: Call) -> None:
        boundary = boundary_of(call.header(b"content-type") or "")
        if call.exchange.content_length is not None and call.exchange.content_length > PUT_BYTES_MAX:
            raise S3Error("EntityTooLarge")
        form = _Form(call.exchange, boundary)
        call.exchange.receive(form)
        fields = await form.fields()
        policy = await self._judge(call, fields, form.decoder.filename)
        bucket = await self._catalog.bucket(call.bucket)
        asked = _as_headers(call, fields)
        if "tagging" in fields:
            asked.tags = parse_tagging(fields["tagging"].encode())
        # conditions of policies judge what the form asks for, as they do headers
        rights.require(asked, "s3:PutObject", bucket, call.key)
        meta = locked_meta(asked, bucket, meta_of(asked), self._catalog.now_ms)
        meta = msgspec.structs.replace(
            meta, tags=meta.tags if asked.tags is None else asked.tags, extra={**meta.extra, MADE_BY: BY_POST}
        )
        meta = await self._acls.of_write(asked, bucket, meta)
        promise = form_promise(asked)
        cover = cover_of(self._vault, self._vault.wish(asked, bucket))
        walk = self._store.put_walk(
            call.bucket, call.key, size=None, size_max=PUT_BYTES_MAX, storage_class=class_of(meta)
        )
        target: Pushed = walk
        seal = Encryptor(walk, cover.data_key, -1) if cover.sealed is not None else None
        if seal is not None:
            target = seal
        if policy is not None and policy.most_bytes >= 0:
            target = _Limited(target, policy.most_bytes)
        try:
            received = await self._receive(call, form, target, promise)
            if policy is not None and received.size < policy.least_bytes:
                raise S3Error("EntityTooSmall")
            if seal is not None:
                seal.end()
                await walk.has_room()
            meta, etag = cover.meta(with_checksum(meta, received)), cover.etag(received.md5)
            made = await walk.finish(meta=meta, etag=cover.stored_etag(etag, received.size))
        finally:
            await walk.abort()
        lines = f'etag: "{etag}"\r\n' + version_line(made.version, bucket) + checksum_lines(received) + cover.lines
        _answer(call, fields, etag, lines)

    async def _judge(self, call: Call, fields: dict[str, str], filename: str) -> FormPolicy | None:
        """Who sends the form, and whether its policy allows it; the key. None: a stranger's form without policy."""
        key = fields.get("key")
        if not key:
            raise S3Error("InvalidArgument", "Bucket POST must contain a field named 'key'. If it is specified, please "
                          "check the order of the fields.")  # fmt: skip
        call.key = check_key(key.replace("${filename}", filename))
        text = fields.get("policy")
        if text is None:
            if "x-amz-signature" in fields:
                raise S3Error("InvalidArgument", "Bucket POST must contain a field named 'policy'.")
            call.principal = ANONYMOUS
            return None
        if "awsaccesskeyid" in fields and "x-amz-credential" not in fields:
            raise S3Error("InvalidRequest", "Signature Version 2 is not supported; please use AWS4-HMAC-SHA256.")
        for name in ("x-amz-credential", "x-amz-signature", "x-amz-date"):
            if not fields.get(name):
                raise S3Error("InvalidArgument", f"Bucket POST must contain a field named '{name}'.")
        if fields.get("x-amz-algorithm") != _ALGORITHM:
            raise S3Error("InvalidArgument", f"x-amz-algorithm must be {_ALGORITHM}.")
        call.principal = await self._auth.form(fields["x-amz-credential"], text, fields["x-amz-signature"])
        policy = FormPolicy(text, self._catalog.now_ms)
        policy.check({**fields, "bucket": call.bucket, "key": call.key})
        return policy

    async def _receive(self, call: Call, form: _Form, target: Pushed, promise: Promise) -> Received:
        algorithm = promise.algorithm or "crc64nvme"
        pump = BodyPump(call.exchange, target, Hasher({"md5", algorithm}, self._executor))
        pump.take_from(form.decoder)
        form.go_on(pump)
        digests = await pump.digests()
        return checked(promise, digests, promise.checksum, algorithm, pump.size)


class _Fields:
    """An exchange whose headers are the form's fields, but for those that say who asks."""

    def __init__(self, real: Exchange, fields: dict[str, str]) -> None:
        self.headers = [(name, value) for name, value in real.headers if name in _OF_CALLER]
        self.headers += [
            (_RENAMED.get(name, name).encode("latin-1", "replace"), value.encode()) for name, value in fields.items()
            if name.encode("latin-1", "replace") not in _OF_CALLER
        ]  # fmt: skip
        self.method, self.target, self.peer = real.method, real.target, real.peer

    def header(self, name: bytes) -> bytes | None:
        return next((value for held, value in self.headers if held == name), None)


def _as_headers(call: Call, fields: dict[str, str]) -> Call:
    """The call as if its form's fields had been headers."""
    return dataclasses.replace(call, exchange=cast("Exchange", _Fields(call.exchange, fields)))


def _answer(call: Call, fields: dict[str, str], etag: str, lines: str) -> None:
    location = f"http://{call.header(b'host') or ''}/{call.bucket}/{quote(call.key)}"
    redirect = fields.get("success_action_redirect") or fields.get("redirect")
    if redirect and urlsplit(redirect).scheme in ("http", "https") and "\r" not in redirect and "\n" not in redirect:
        joint = "&" if urlsplit(redirect).query else "?"
        to = f"{redirect}{joint}bucket={quote(call.bucket)}&key={quote(call.key, safe='')}&etag=%22{etag}%22"
        call.reply(303, b"", f"location: {to}\r\n{lines}".encode())
        return
    status = fields.get("success_action_status")
    lines += f"location: {location}\r\n"
    if status == "201":
        inner = element("Location", location) + element("Bucket", call.bucket) + element("Key", call.key)
        inner += element("ETag", f'"{etag}"')
        # the one answer that AWS gives without a namespace
        body = f"{documents.HEAD}<PostResponse>{inner}</PostResponse>".encode("utf-8", "surrogatepass")
        call.reply(201, body, XML_LINE + lines.encode())
        return
    call.reply(200 if status == "200" else 204, b"", lines.encode())
