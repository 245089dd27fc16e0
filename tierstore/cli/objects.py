"""Buckets and single objects: mb rb ls rm mv cat stat."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tierstore.cli.cluster import (
    Endpoint,
    Json,
    Place,
    Profile,
    Token,
    bucket_path,
    find,
    is_place,
    open_http,
    open_store,
    parse_place,
)
from tierstore.cli.output import print_fields, print_json, print_table, say
from tierstore.errors import ConflictError, RequestError
from tierstore.names import version_text
from tierstore.units import format_size

if TYPE_CHECKING:
    from tierstore.sdk import ObjectInfo, Store
    from tierstore.wire.names import ListEntry

DELETES_AT_ONCE: Final = 64
_PAGE: Final = 1000

Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Everything below, too.")]
Target = Annotated[str, typer.Argument(help="ts://bucket[/key]")]


def mb(target: Target, endpoint: Endpoint = None, token: Token = None, profile: Profile = None,
       as_json: Json = False) -> None:  # fmt: skip
    """Make a bucket."""
    place = _bucket_only(target)
    with open_http(find(endpoint, token, profile)) as http:
        http.call("PUT", bucket_path(place.bucket))
    print_json({"bucket": place.bucket}) if as_json else say(f"made {place}")


def rb(
    target: Target,
    force: Annotated[bool, typer.Option(help="Delete the objects in it first.")] = False,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Remove an empty bucket."""
    place = _bucket_only(target)
    address = find(endpoint, token, profile)
    deleted = 0
    if force:

        async def empty() -> int:
            async with open_store(address) as store:
                return await _delete_below(store, place)

        deleted = asyncio.run(empty())
    with open_http(address) as http:
        try:
            http.call("DELETE", bucket_path(place.bucket))
        except ConflictError as error:
            if error.code == "bucket-not-empty" and not force:
                detail = f"{place} is not empty; remove its objects too with --force"
                raise ConflictError(detail, code=error.code) from None
            raise
    print_json({"bucket": place.bucket, "deleted": deleted}) if as_json else say(f"removed {place}")


def ls(
    target: Annotated[str, typer.Argument(help="ts://bucket[/prefix]; nothing: the buckets.")] = "",
    recursive: Recursive = False,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """List buckets, or what is in one."""
    address = find(endpoint, token, profile)
    if not target:
        with open_http(address) as http:
            answer = http.get("/v1/buckets")
        buckets = answer["buckets"] if isinstance(answer, dict) else answer
        if as_json:
            print_json(buckets)
        else:
            print_table(["bucket"], [[f"ts://{bucket['name']}"] for bucket in buckets])
        return
    place = parse_place(target)

    async def listing() -> None:
        async with open_store(address) as store:
            after: str | None = ""
            while after is not None:
                page = await store.list_page(
                    place.bucket, prefix=place.key, delimiter="" if recursive else "/", start_after=after, limit=_PAGE
                )
                _print_page(place, page.prefixes, page.objects, as_json)
                after = page.next_start_after

    asyncio.run(listing())


def _print_page(place: Place, prefixes: list[str], entries: list[ListEntry], as_json: bool) -> None:
    """Prefixes and objects in one key order; one JSON document per line."""
    lines: list[tuple[str, ListEntry | None]] = [(prefix, None) for prefix in prefixes]
    lines += [(entry.key, entry) for entry in entries]
    for key, entry in sorted(lines, key=lambda line: line[0].encode()):
        if as_json:
            print_json(entry_fields(entry) if entry else {"prefix": key})
        elif entry is None:
            say(f"{'':<20}  {'-':>11}  {'':<4}  {key}")
        else:
            say(f"{timestamp(entry.created_at_ms)}  {format_size(entry.size):>11}  {entry.tier:<4}  {key}")


def entry_fields(entry: ListEntry) -> dict[str, Any]:
    return {
        "key": entry.key, "size": entry.size, "etag": entry.etag, "version": version_text(entry.version),
        "modified_at": timestamp(entry.created_at_ms), "tier": entry.tier, "heat_per_hour": entry.heat_per_hour,
    }  # fmt: skip


def timestamp(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rm(
    target: Target,
    recursive: Recursive = False,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Delete an object, or with -r all whose keys begin with it."""
    place = parse_place(target, needs_key=not recursive)

    async def work() -> int:
        async with open_store(find(endpoint, token, profile)) as store:
            if recursive:
                return await _delete_below(store, place)
            await store.head(place.bucket, place.key)   # so that a wrong name is an error and not silence
            await store.delete(place.bucket, place.key)
            return 1

    deleted = asyncio.run(work())
    print_json({"deleted": deleted}) if as_json else say(f"deleted {deleted} object{'s' * (deleted != 1)}")


async def _delete_below(store: Store, place: Place) -> int:
    """Delete all objects under a prefix; the number of them. At most DELETES_AT_ONCE are under way."""
    deleted = 0
    batch: list[str] = []
    async for entry in store.list(place.bucket, prefix=place.key):
        batch.append(entry.key)
        if len(batch) == DELETES_AT_ONCE:
            deleted += await _delete_all(store, place.bucket, batch)
            batch = []
    return deleted + await _delete_all(store, place.bucket, batch)


async def _delete_all(store: Store, bucket: str, keys: list[str]) -> int:
    async with asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(store.delete(bucket, key))
    return len(keys)


def mv(
    source: Annotated[str, typer.Argument(help="ts://bucket/key")],
    target: Annotated[str, typer.Argument(help="ts://bucket/key, or ts://bucket/prefix/")],
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Rename an object within the store, in one moment; no byte moves."""
    if not (is_place(source) and is_place(target)):
        raise RequestError("mv renames within the store; to bring files in or out use cp")
    here = parse_place(source, needs_key=True)
    there = below(parse_place(target), here.key.rpartition("/")[2])

    async def work() -> None:
        async with open_store(find(endpoint, token, profile)) as store:
            await store.copy(here.bucket, here.key, there.bucket, there.key, rename=True)

    asyncio.run(work())
    print_json({"from": str(here), "to": str(there)}) if as_json else say(f"{here} -> {there}")


def below(place: Place, name: str) -> Place:
    """The place itself, or `name` in it when it is a bucket or a prefix that ends in "/"."""
    return Place(place.bucket, place.key + name) if not place.key or place.key.endswith("/") else place


def cat(target: Target, endpoint: Endpoint = None, token: Token = None, profile: Profile = None) -> None:
    """Write an object to standard output."""
    place = parse_place(target, needs_key=True)

    async def work() -> None:
        async with open_store(find(endpoint, token, profile)) as store:
            async with await store.get(place.bucket, place.key) as reader:
                while piece := await reader.next_piece():
                    sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()

    asyncio.run(work())


def stat(target: Target, endpoint: Endpoint = None, token: Token = None, profile: Profile = None,
         as_json: Json = False) -> None:  # fmt: skip
    """Show what is known of an object."""
    place = parse_place(target, needs_key=True)

    async def work() -> ObjectInfo:
        async with open_store(find(endpoint, token, profile)) as store:
            return await store.head(place.bucket, place.key)

    info = asyncio.run(work())
    fields: dict[str, Any] = {
        "key": str(place), "size": info.size, "etag": info.etag, "version": version_text(info.version),
        "modified_at": timestamp(info.created_at_ms), "content_type": info.content_type,
        "crc32c": info.checksum_crc32c, "tier": info.tier, "user_meta": info.user_meta,
    }  # fmt: skip
    if as_json:
        print_json(fields)
    else:
        user_meta = fields.pop("user_meta")
        print_fields({**fields, "size": f"{info.size} ({format_size(info.size)})", **user_meta})


def _bucket_only(target: str) -> Place:
    place = parse_place(target if is_place(target) else f"ts://{target}")
    if place.key:
        raise RequestError(f"{target!r} names an object; name the bucket: ts://{place.bucket}")
    return place


