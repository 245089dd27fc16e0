"""`tierstore admin sites` and `tierstore admin replication`: other sites, what goes to them, how far behind."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from tierstore.cli.cluster import Endpoint, Http, Json, Profile, Token, find, open_http
from tierstore.cli.output import print_json, print_table, say
from tierstore.errors import RequestError, UnavailableError
from tierstore.units import format_seconds, format_size

sites = typer.Typer(help="Other sites: keys, bandwidth, networks.", no_args_is_help=True)
replication = typer.Typer(help="How far sites are behind, and buckets' rules.", no_args_is_help=True)

#: Between two looks at a rebuild.
REBUILD_SECONDS = 1.0
#: For the other site to begin sending to one that is rebuilt.
UNKNOWN_SECONDS_MAX = 60.0
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
        rate, schedule, share = ("", "", "") if site["is_local"] else _bandwidth(site)
        rows.append(
            [site["name"], str(site["number"]), state, latency, " ".join(site["gateways"]),
             " ".join(site["networks"]), rate, schedule, share]
        )  # fmt: skip
    names = ["site", "number", "state", "latency", "gateways", "networks", "rate", "schedule (UTC)", "share"]
    print_table(names, rows)


def _bandwidth(site: dict[str, Any]) -> tuple[str, str, str]:
    """What is set of the way to a site, in the words of `sites set`."""
    spans = [f"{span['from']}-{span['to']}={span['rate'] or 'no limit'}" for span in site["schedule"]]
    return site["rate"] or "no limit", " ".join(spans), f"{site['share']:g}"


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
        if answer.get("buckets"):
            say(f"nothing of these buckets goes there any more: {', '.join(answer['buckets'])}")
        if answer.get("homeless"):
            say(f"conditional writes to these are judged by each site for itself now: {', '.join(answer['homeless'])}")


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
    pause: Annotated[bool, typer.Option("--pause", help="Let the one under way stand still.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Let it go on.")] = False,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Queue what exists for a site. What it has does not travel. `admin replication status` shows how far it is."""
    if pause and resume:
        raise RequestError("--pause or --resume, not both")
    if pause or resume:
        _act(name, f"backfill/{'pause' if pause else 'resume'}", (endpoint, token, profile), as_json)
    else:
        _act(name, "backfill", (endpoint, token, profile), as_json, {"bucket": bucket, "prefix": prefix})


@sites.command("rebuild")
def rebuild(
    name: Annotated[str, typer.Argument(help="A site that has the data.")],
    gateway: Annotated[str, typer.Option(help="URL of a gateway of that site.")],
    site_token: Annotated[str, typer.Option(help="An administrator's token of that site; used once, not kept.",
                                            envvar="TIERSTORE_SITE_TOKEN")],
    own_gateway: Annotated[list[str] | None, typer.Option(help="How that site reaches this one; repeatable.")] = None,
    wait: Annotated[bool, typer.Option(help="Show the progress until all bodies are here.")] = True,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Fill this site, which is new and empty, from another one that knew it before it was lost. Give it the name and
    the number that it had. Writes to shared buckets are taken once all names are here; bodies follow, the hottest
    first, and are fetched when they are read sooner."""
    wish = {
        "name": name, "gateway": gateway, "token": site_token, "own_gateways": own_gateway or [], "rebuild": True,
    }  # fmt: skip
    here = find(endpoint, token, profile)
    with open_http(here) as http:
        http.call("POST", "/v1/admin/sites", body=wish)
        me = next(site["name"] for site in http.get("/v1/admin/sites")["sites"] if site["is_local"])
        if wait:
            with open_http(replace(here, endpoint=gateway, token=site_token)) as there:
                _follow_rebuild(http, there, me, quiet=as_json)
        _show_sites(http.get("/v1/admin/sites"), as_json)


def _follow_rebuild(here: Http, there: Http, me: str, *, quiet: bool) -> None:
    """A line whenever something has changed, until nothing is left. Each request has its own deadline; an operator
    may leave at any time, the rebuild goes on."""
    said, unknown_rounds = "", 0
    while True:
        targets = there.get("/v1/admin/replication")["targets"]
        target = next((t for t in targets if t["site"] == me), None)
        if target is None:      # the other site begins to send within seconds of hearing of this one
            unknown_rounds += 1
            if unknown_rounds * REBUILD_SECONDS > UNKNOWN_SECONDS_MAX:
                raise UnavailableError(f"the other site sends nothing to {me}: see `admin sites list` there")
            time.sleep(REBUILD_SECONDS)
            continue
        waiting = here.get("/v1/admin/replication")["comparing"]
        left = f"{target['backlog_objects']} objects, {format_size(target['backlog_bytes'])} to come"
        line = f"{'names' if waiting else 'bodies'}: {target['backfill_walked']} walked, {left}"
        if line != said and not quiet:
            say(line)
        said = line
        if not waiting and not target["backfill_left"] and not target["backlog_objects"]:
            return
        time.sleep(REBUILD_SECONDS)


@sites.command("open")
def accept(
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False
) -> None:
    """Take writes at this site, which was restored, though not every other site has sent what it forgot."""
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.call("POST", "/v1/admin/sites/open")
    if as_json:
        print_json(answer)
    else:
        say(f"open; not compared with: {', '.join(answer['not_compared']) or 'none'}")


@sites.command("set")
def change(
    name: Name,
    rate: Annotated[str | None, typer.Option(help='Bandwidth towards it, as 25MiB/s; "" for no limit.')] = None,
    gateway: Annotated[list[str] | None, typer.Option(help="Its gateways, as this site reaches them.")] = None,
    network: Annotated[
        list[str] | None, typer.Option(help='Clients in this CIDR are served there first; repeatable; "": none.')
    ] = None,
    schedule: Annotated[
        list[str] | None, typer.Option(help='Another rate by day, UTC: "22:00-06:00=9MiB/s"; repeatable; "": none.')
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Of the time that bodies may travel while clients are busy here, 0.05 to 1.")
    ] = None,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Bandwidth, gateways and networks of a site (networks of this one too)."""
    networks = None if network is None else [text for text in network if text]
    spans = None if schedule is None else [_span(text) for text in schedule if text]
    wish = {
        "rate": rate, "gateways": gateway or None, "networks": networks, "schedule": spans, "share": share,
    }  # fmt: skip
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.call(
            "PATCH", f"/v1/admin/sites/{quote(name, safe='')}",
            body={key: value for key, value in wish.items() if value is not None},
        )  # fmt: skip
        _show_sites(answer, as_json)


def _span(text: str) -> dict[str, str]:
    """Raises RequestError for what is not like 22:00-06:00=100MiB/s."""
    times, equals, rate = text.partition("=")
    start, dash, stop = times.partition("-")
    if not (equals and dash):
        raise RequestError(f'--schedule {text!r} is not like "22:00-06:00=100MiB/s"')
    return {"from": start.strip(), "to": stop.strip(), "rate": rate.strip()}


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
    for t in answer["targets"]:
        if t["backfill_left"]:
            state = " (paused)" if t["backfill_paused"] else ""
            say(f"backfill of {t['site']}{state}: {t['backfill_walked']} walked, {t['backfill_queued']} queued, "
                f"{t['backfill_left']} buckets and prefixes left")  # fmt: skip
    if answer["refusal"]:
        say(f"writes to shared buckets are refused: {answer['refusal']}")
    sync = answer["sync"]
    say(f"sync: {sync['waits']} waits, {sync['degraded']} answers degraded, {sync['failed']} failed")


@replication.command("rules")
def rules(
    bucket: Annotated[str, typer.Argument(help="A bucket.")],
    to: Annotated[str, typer.Option(help="Replace the rules by one: everything to this site.")] = "",
    mode: Annotated[str, typer.Option(help="async or sync.")] = "async",
    bodies: Annotated[str, typer.Option(help="all, hot or on-demand.")] = "all",
    on_failure: Annotated[str, typer.Option(help="fail or degrade, for sync.")] = "degrade",
    prefix: Annotated[str, typer.Option(help="Only keys that begin so.")] = "",
    home: Annotated[str | None, typer.Option(help='Site that judges conditional writes; "" for each its own.')] = None,
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
            answer = http.call("PUT", path, body={"rules": [rule], "home": home})
        elif home is not None:
            answer = http.call("PUT", path, body={"rules": http.get(path)["rules"], "home": home})
        else:
            answer = http.get(path)
    if as_json:
        print_json(answer)
        return
    columns = ["prefix", "target", "mode", "bodies", "on_failure"]
    print_table(columns, [[rule[name] for name in columns] for rule in answer["rules"]])
    if answer.get("home"):
        say(f"conditional writes are judged at {answer['home']}")
