"""`tierstore admin users`: who has keys, and which policies are attached to whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from tierstore.cli.cluster import Endpoint, Json, Profile, Token, find, open_http
from tierstore.cli.output import print_json, print_table
from tierstore.errors import RequestError

users = typer.Typer(help="Users and their policies for S3.", no_args_is_help=True)


@users.command("list")
def users_list(endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False) -> None:
    """Users, their keys and policies."""
    with open_http(find(endpoint, token, profile)) as http:
        _show(http.get("/v1/admin/users"), as_json)


@users.command("attach")
def users_attach(
    user: Annotated[str, typer.Argument(help="The user.")],
    name: Annotated[str, typer.Argument(help="What the policy is called.")],
    document: Annotated[Path, typer.Argument(help="JSON file with the policy, without principals.")],
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Attach a policy: what the user's signed S3 requests may do. One of that name is replaced."""
    try:
        body = json.loads(document.read_text())
    except (OSError, ValueError) as error:
        raise RequestError(f"{document}: {error}") from None
    with open_http(find(endpoint, token, profile)) as http:
        _show(http.call("PUT", _path(user, name), body=body), as_json)


@users.command("detach")
def users_detach(
    user: Annotated[str, typer.Argument(help="The user.")],
    name: Annotated[str, typer.Argument(help="The policy.")],
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Take a policy from a user."""
    with open_http(find(endpoint, token, profile)) as http:
        _show(http.call("DELETE", _path(user, name)), as_json)


def _show(answer: Any, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    rows = [(user["user"], ", ".join(user["keys"]), ", ".join(user["policies"])) for user in answer["users"]]
    print_table(("user", "keys", "policies"), rows)


def _path(user: str, name: str) -> str:
    return f"/v1/admin/users/{quote(user, safe='')}/policies/{quote(name, safe='')}"
