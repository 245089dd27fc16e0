"""Calls about names alone: delete, copy, rename, metadata, listings. No body is read or written.

Owns nothing: `Store` brings the client, the limits and who fetches bodies from other sites. Errors are those of
tierstore.errors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from tierstore.errors import ConflictError, RequestError
from tierstore.names import check_bucket_name, check_key, check_user_meta
from tierstore.sdk.limits import StoreLimits
from tierstore.sdk.remote import RemoteSource
from tierstore.transport.metadata_client import MetadataClient
from tierstore.wire.names import (
    CommitResult,
    Condition,
    Copy,
    Delete,
    ListEntry,
    ListItem,
    ListResult,
    ObjectMeta,
    SetMeta,
)


class NameCalls:
    """What a Store offers beside put and get."""

    client: MetadataClient
    limits: StoreLimits
    #: Who brings bodies that are still at another site.
    remote: RemoteSource | None

    async def delete(
        self, bucket: str, key: str, *, version: int = 0, condition: Condition | None = None, access: str = "",
        bypass_governance: bool = False,
    ) -> CommitResult:  # fmt: skip
        """Delete an object (or one version for good). Deleting what is not there succeeds: see `existed`."""
        check_key(key)
        mutation = Delete(bucket, key, version, condition, bypass_governance)
        return await self.client.commit(mutation, access=access, seconds=self.limits.request_seconds)

    async def copy(
        self, bucket: str, key: str, to_bucket: str, to_key: str, *, meta: ObjectMeta | None = None,
        condition: Condition | None = None, source_condition: Condition | None = None, from_version: int = 0,
        rename: bool = False, access: str = "",
    ) -> CommitResult:  # fmt: skip
        """Make to_key an object with the same bytes; no byte moves. rename: the source is gone in the same moment."""
        check_key(key)
        check_bucket_name(to_bucket)
        check_key(to_key)
        if rename and (bucket, key) == (to_bucket, to_key):
            raise RequestError("an object cannot be renamed to its own name", code="same-name")
        mutation = Copy(
            to_bucket, to_key, bucket, key, from_version, meta, condition, source_condition, rename
        )
        try:
            return await self.client.commit(mutation, access=access, seconds=self.limits.request_seconds)
        except ConflictError as error:
            if error.code != "body-not-here" or self.remote is None:
                raise
        await self.remote.bring(bucket, key, access=access)
        return await self.client.commit(mutation, access=access, seconds=self.limits.request_seconds)

    async def rename(self, bucket: str, key: str, to_key: str, *, access: str = "") -> CommitResult:
        return await self.copy(bucket, key, bucket, to_key, rename=True, access=access)

    async def set_meta(
        self, bucket: str, key: str, meta: ObjectMeta, *, version: int = 0, condition: Condition | None = None,
        access: str = "", lock: str = "", bypass_governance: bool = False,
    ) -> CommitResult:  # fmt: skip
        """Replace content type, user metadata and the rest; body and version stay. lock: see wire.names.SetMeta."""
        check_key(key)
        check_user_meta(meta.user_meta)
        mutation = SetMeta(bucket, key, meta, version, condition, lock, bypass_governance)
        return await self.client.commit(mutation, access=access, seconds=self.limits.request_seconds)

    async def list_page(
        self, bucket: str, *, prefix: str = "", delimiter: str = "", start_after: str = "", limit: int = 1000,
        access: str = "", want_placement: bool = True, want_class: bool = False,
    ) -> ListResult:  # fmt: skip
        """One page in key order: at most `limit` (1..10000) keys and common prefixes together."""
        item = ListItem(bucket, prefix, delimiter, start_after, limit, access, want_placement, want_class)
        return await self.client.list(item, seconds=self.limits.request_seconds)

    async def list(
        self, bucket: str, *, prefix: str = "", start_after: str = "", access: str = "", page: int = 1000
    ) -> AsyncIterator[ListEntry]:
        """All objects in key order, page by page."""
        after: str | None = start_after
        while after is not None:
            result = await self.list_page(
                bucket, prefix=prefix, start_after=after, limit=page, access=access, want_placement=False
            )
            for entry in result.objects:
                yield entry
            after = result.next_start_after
