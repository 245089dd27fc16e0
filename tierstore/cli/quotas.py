"""`tierstore admin quota`: how much a bucket may hold."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tierstore.cli.cluster import Endpoint, Json, Profile, Token, bucket_path, find, open_http, parse_place
from tierstore.cli.output import print_json, say
from tierstore.errors import RequestError
from tierstore.units import format_size, parse_size

quota = typer.Typer(help="How much a bucket may hold.", no_args_is_help=True)

Bucket = Annotated[str, typer.Argument(help="ts://bucket")]


@quota.command("show")
def quota_show(
    bucket: Bucket, endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """The quota of a bucket, and what it holds."""
    with open_http(find(endpoint, token, profile)) as http:
        _show(bucket, http.get(_path(bucket)), as_json)


@quota.command("set")
def quota_set(
    bucket: Bucket,
    size: Annotated[str, typer.Option("--bytes", help="At most so many bytes (10GiB); nothing: no bound.")] = "",
    objects: Annotated[int, typer.Option(min=0, help="At most so many objects; 0: no bound.")] = 0,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Bound a bucket. What is there stays, also above the bound; what would pass it is refused."""
    held = parse_size(size) if size else 0
    if not held and not objects:
        raise RequestError("say --bytes or --objects; `quota clear` removes a quota")
    with open_http(find(endpoint, token, profile)) as http:
        _show(bucket, http.call("PUT", _path(bucket), body={"bytes": held, "objects": objects}), as_json)


@quota.command("clear")
def quota_clear(
    bucket: Bucket, endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Remove the quota of a bucket."""
    with open_http(find(endpoint, token, profile)) as http:
        _show(bucket, http.call("PUT", _path(bucket), body={}), as_json)


def _path(target: str) -> str:
    return f"{bucket_path(parse_place(target).bucket)}/quota"


def _show(bucket: str, answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
    elif answer["used_bytes"] is None:
        say(f"{bucket}: no quota")
    else:
        most_bytes = format_size(answer["bytes"]) if answer["bytes"] else "no bound"
        most_objects = f"{answer['objects']:,}" if answer["objects"] else "no bound"
        say(f"{bucket}: {format_size(answer['used_bytes'])} of {most_bytes}, "
            f"{answer['used_objects']:,} objects of {most_objects}")  # fmt: skip
