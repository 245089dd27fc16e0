"""`tierstore admin sites` and `tierstore admin replication`: other sites, what goes to them, how far behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from tierstore.cli.cluster import Endpoint, Json, Profile, Token, find, open_http
from tierstore.cli.output import print_json, print_table, say
from tierstore.errors import RequestError
from tierstore.units import format_seconds, format_size

sites = typer.Typer(help="Other sites: keys, bandwidth, networks.", no_args_is_help=True)
replication = typer.Typer(help="How far sites are behind, and buckets' rules.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A site.")]


def _show_sites(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    rows = []
    for site in answer["sites"]:
        state = "this site" if site["is_local"] else "paused" if site["paused"] else "ok"
        if site["reachable"] is False:
            state = "unreachable"
        latency = "" if site["latency_ms"] is None else f"{site['latency_ms']:.1f} ms"
        rows.append(
            [site["name"], str(site["number"]), state, latency, " ".join(site["gateways"]),
             " ".join(site["networks"]), site["rate"]]
        )  # fmt: skip
    print_table(["site", "number", "state", "latency", "gateways", "networks", "rate"], rows)


@sites.command("list")
def list_sites(endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False) -> None:
    """This site and those it knows."""
    with open_http(find(endpoint, token, profile)) as http:
        _show_sites(http.get("/v1/admin/sites"), as_json)


@sites.command("add")
def add(
    name: Name,
    gateway: Annotated[str, typer.Option(help="URL of a gateway of that site.")],
    site_token: Annotated[str, typer.Option(help="An administrator's token of that site; used once, not kept.",
                                            envvar="TIERSTORE_SITE_TOKEN")],
    own_gateway: Annotated[list[str] | None, typer.Option(help="How that site reaches this one; repeatable.")] = None,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Make two sites known to each other: each gets a key of the other."""
    wish = {"name": name, "gateway": gateway, "token": site_token, "own_gateways": own_gateway or []}
    with open_http(find(endpoint, token, profile)) as http:
        http.call("POST", "/v1/admin/sites", body=wish)
        _show_sites(http.get("/v1/admin/sites"), as_json)


@sites.command("remove")
def remove(
    name: Name,
    drop_queue: Annotated[bool, typer.Option("--drop-queue", help="Also when it has not got everything.")] = False,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Forget a site and end its key. Run it at the other site too."""
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.call("DELETE", f"/v1/admin/sites/{quote(name, safe='')}", params={"drop_queue": drop_queue})
    if as_json:
        print_json(answer)
    else:
        say(f"{name} is forgotten; {answer['dropped']} queued changes went with it")


def _act(name: str, action: str, find_args: tuple[Any, Any, Any], as_json: bool, body: Any = None) -> None:
    with open_http(find(*find_args)) as http:
        _show_sites(http.call("POST", f"/v1/admin/sites/{quote(name, safe='')}/{action}", body=body), as_json)


@sites.command("pause")
def pause(
    name: Name, endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False
) -> None:
    """Send a site nothing; what it lacks is kept. Durable."""
    _act(name, "pause", (endpoint, token, profile), as_json)


@sites.command("resume")
def resume(
    name: Name, endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False
) -> None:
    """Send again."""
    _act(name, "resume", (endpoint, token, profile), as_json)


@sites.command("rotate")
def rotate(
    name: Name, endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False
) -> None:
    """New keys in both directions; the old ones end."""
    _act(name, "rotate", (endpoint, token, profile), as_json)


@sites.command("backfill")
def backfill(
    name: Name, bucket: Annotated[str, typer.Option(help="Only this bucket.")] = "",
    prefix: Annotated[str, typer.Option(help="Only keys of it that begin so.")] = "",
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Queue what exists for a site, as after the loss of all its disks. What it has does not travel."""
    _act(name, "backfill", (endpoint, token, profile), as_json, {"bucket": bucket, "prefix": prefix})


@sites.command("set")
def change(
    name: Name,
    rate: Annotated[str | None, typer.Option(help='Bandwidth towards it, as 25MiB/s; "" for no limit.')] = None,
    gateway: Annotated[list[str] | None, typer.Option(help="Its gateways, as this site reaches them.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="Clients in this CIDR are served there first.")] = None,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Bandwidth, gateways and networks of a site (networks of this one too)."""
    wish = {"rate": rate, "gateways": gateway or None, "networks": network or None}
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.call(
            "PATCH", f"/v1/admin/sites/{quote(name, safe='')}",
            body={key: value for key, value in wish.items() if value is not None},
        )  # fmt: skip
        _show_sites(answer, as_json)


@replication.command("status")
def status(endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False) -> None:
    """Of each target site: what it lacks, how old the oldest is, how long it will take."""
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.get("/v1/admin/replication")
    if as_json:
        print_json(answer)
        return
    rows = []
    for t in answer["targets"]:
        drain = "" if t["drain_seconds"] is None else format_seconds(t["drain_seconds"])
        confirmed = "never" if t["confirmed_seconds"] is None else format_seconds(t["confirmed_seconds"]) + " ago"
        rows.append(
            [t["site"], t["state"], str(t["backlog_objects"]), format_size(t["backlog_bytes"]),
             format_seconds(t["oldest_seconds"]), format_size(t["rate_bytes_per_second"]) + "/s", drain, confirmed,
             t["error"][:60]]
        )  # fmt: skip
    names = ["site", "state", "objects", "bytes", "oldest", "rate", "drains in", "had all", "error"]
    print_table(names, rows)
    sync = answer["sync"]
    say(f"sync: {sync['waits']} waits, {sync['degraded']} degraded, {sync['failed']} failed")


@replication.command("rules")
def rules(
    bucket: Annotated[str, typer.Argument(help="A bucket.")],
    to: Annotated[str, typer.Option(help="Replace the rules by one: everything to this site.")] = "",
    mode: Annotated[str, typer.Option(help="async or sync.")] = "async",
    bodies: Annotated[str, typer.Option(help="all, hot or on-demand.")] = "all",
    on_failure: Annotated[str, typer.Option(help="fail or degrade, for sync.")] = "degrade",
    prefix: Annotated[str, typer.Option(help="Only keys that begin so.")] = "",
    file: Annotated[Path | None, typer.Option(help='JSON to replace them by: {"rules": [...]}.')] = None,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Show or replace a bucket's replication rules."""
    path = f"/v1/buckets/{quote(bucket, safe='')}/replication"
    with open_http(find(endpoint, token, profile)) as http:
        if file is not None:
            try:
                wish = json.loads(file.read_text())
            except (OSError, ValueError) as error:
                raise RequestError(f"--file {file}: {error}", code="bad-json") from None
            answer = http.call("PUT", path, body=wish)
        elif to:
            rule = {"prefix": prefix, "target": to, "mode": mode, "bodies": bodies, "on_failure": on_failure}
            answer = http.call("PUT", path, body={"rules": [rule]})
        else:
            answer = http.get(path)
    if as_json:
        print_json(answer)
        return
    columns = ["prefix", "target", "mode", "bodies", "on_failure"]
    print_table(columns, [[rule[name] for name in columns] for rule in answer["rules"]])
