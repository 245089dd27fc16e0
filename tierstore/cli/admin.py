"""`tierstore admin ...`: what operators ask and do, over the gateway's /v1/admin.

Answers are printed as the service gives them: a list becomes a table whose columns are its fields. So a new field
of the service shows up here without a change, and --json is the service's own answer.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from tierstore.cli import heat
from tierstore.cli.answers import show
from tierstore.cli.cluster import Endpoint, Http, Json, Profile, Token, find, open_http
from tierstore.cli.compare import compare
from tierstore.cli.output import notes, print_json, say
from tierstore.cli.policies import policy
from tierstore.cli.quotas import quota
from tierstore.cli.roll import roll
from tierstore.cli.sites import replication, sites
from tierstore.cli.users import users
from tierstore.errors import RequestError
from tierstore.units import parse_rate

admin = typer.Typer(help="What operators ask and do.", no_args_is_help=True)
keys = typer.Typer(help="Access keys and their rights.", no_args_is_help=True)
admin.add_typer(policy, name="policy")
admin.add_typer(keys, name="keys")
admin.add_typer(users, name="users")
admin.add_typer(quota, name="quota")
admin.add_typer(sites, name="sites")
admin.add_typer(replication, name="replication")
admin.command("tiers")(heat.tiers)
admin.command("heat")(heat.heat)
admin.command("history")(heat.history)
admin.command("explain")(heat.explain)
admin.command("roll")(roll)
admin.command("compare")(compare)



class JobsAction(StrEnum):
    show = "show"
    pause = "pause"
    resume = "resume"
    retry = "retry"


class ScrubAction(StrEnum):
    show = "show"
    start = "start"
    pause = "pause"
    resume = "resume"


class RepairAction(StrEnum):
    show = "show"
    pause = "pause"
    resume = "resume"
    go_on = "go-on"


Name = Annotated[str, typer.Argument(help="Name of the server, as `admin servers` shows it.")]


# -- state -------------------------------------------------------------------------------------------------------
@admin.command()
def status(endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False) -> None:
    """Servers, space, work under way, and whether the promises hold now."""
    with open_http(find(endpoint, token, profile)) as http:
        answer = _status(http)
    if as_json:
        print_json(answer)
        return
    servers = [server for server in answer["servers"] if server.get("role", "objectd") == "objectd"]
    up = [server for server in servers if server.get("state") == "up"]
    say(f"{len(up)} of {len(servers)} object servers up, {answer['copies']} copies of every object")
    say()
    everyone = sorted(answer["servers"], key=_by_name)
    show([{name: server.get(name) for name in _SERVER_COLUMNS} for server in everyone], False)
    say()
    show([{name: tier.get(name) for name in _TIER_COLUMNS} for tier in answer["tiers"]], False)
    busy = [row for row in answer["work"] if row.get("state") != "idle" or row.get("failed")]
    if busy:
        say()
        show(busy, False)
    for warning in answer["warnings"]:
        notes.print(f"warning: {warning}", style="yellow", markup=False)


def _by_name(server: dict[str, Any]) -> tuple[bool, str]:
    """Object servers first, in the order of their names."""
    return server.get("role", "objectd") != "objectd", str(server["name"])


_SERVER_COLUMNS: Final = ("name", "role", "state", "url", "used_bytes", "capacity_bytes", "load")
_TIER_COLUMNS: Final = ("tier", "devices", "used_bytes", "free_bytes", "capacity_bytes", "chunks")


def _status(http: Http) -> dict[str, Any]:
    """The service's status with its servers, tiers and work, and our warnings beside its own."""
    answer: dict[str, Any] = http.get("/v1/admin/status")
    servers = http.get("/v1/admin/servers")["servers"]
    warnings = [*answer.get("warnings", [])]
    warnings += [text for text in warnings_of(servers, int(answer["copies"])) if text not in warnings]
    work = http.get("/v1/admin/jobs", limit=1)["work"]
    tiers = http.get("/v1/admin/tiers")["tiers"]
    return {**answer, "servers": servers, "tiers": tiers, "work": work, "warnings": warnings}


def warnings_of(servers: list[dict[str, Any]], copies: int) -> list[str]:
    """What an operator must know: servers that are away, too few for the promise, devices that failed or are full."""
    stores = [server for server in servers if server.get("role", "objectd") == "objectd"]
    up = [server for server in stores if server.get("state") == "up"]
    warnings = [
        f"{server.get('name')} is {server['state']}" for server in servers if server.get("state", "up") != "up"
    ]
    if len(up) < copies:
        warnings.append(f"{len(up)} object servers for {copies} copies: writes are refused (not-enough-servers)")
    elif len(up) < copies + 1:
        warnings.append(f"{len(up)} object servers for {copies} copies: one more lost stops writes; add a server")
    for server in stores:
        for device in server.get("devices", []):
            if isinstance(device, dict) and device.get("state", "ok") not in ("ok", "up"):
                warnings.append(f"device {device.get('name') or device.get('path')} is {device['state']}")
    return warnings


@admin.command()
def servers(endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False) -> None:
    """Every daemon of the site, its state, and the space of its devices."""
    with open_http(find(endpoint, token, profile)) as http:
        show(http.get("/v1/admin/servers"), as_json)


# -- actions -----------------------------------------------------------------------------------------------------
@admin.command()
def drain(name: Name, endpoint: Endpoint = None, token: Token = None, profile: Profile = None,
          as_json: Json = False) -> None:  # fmt: skip
    """Empty a server while it serves, so that it can be taken away."""
    _act(f"/v1/admin/servers/{quote(name, safe='')}/drain", f"draining {name}; watch it with `tierstore admin status`",
         endpoint, token, profile, as_json)  # fmt: skip


@admin.command()
def undrain(name: Name, endpoint: Endpoint = None, token: Token = None, profile: Profile = None,
            as_json: Json = False) -> None:  # fmt: skip
    """Use a drained server again."""
    _act(f"/v1/admin/servers/{quote(name, safe='')}/undrain", f"{name} is in use again",
         endpoint, token, profile, as_json)  # fmt: skip


@admin.command()
def jobs(
    what: Annotated[JobsAction, typer.Argument(help="Show, pause, resume; retry what was given up.")] = JobsAction.show,
    duty: Annotated[str, typer.Option(help="Only this duty (repair, collect, scrub, ...); nothing: all.")] = "",
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Background work: what is waiting and running; pause and resume it."""
    with open_http(find(endpoint, token, profile)) as http:
        if what is not JobsAction.show:
            _switch(http, what.value, duty, as_json)
            return
        answer = http.get("/v1/admin/jobs", duty=duty or None)
    if as_json:
        print_json(answer)
        return
    for part in ("work", "duties", "jobs"):
        rows = [{name: row[name] for name in row if name not in ("detail", "chunk")} for row in answer[part]]
        show(rows, False, empty=f"no {part}")
        say()


@admin.command()
def scrub(
    what: Annotated[ScrubAction, typer.Argument(help="Show, start a pass now, pause, resume.")] = ScrubAction.show,
    rate: Annotated[str, typer.Option(help="Steady pace of each device, like 20MiB/s.")] = "",
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """The scrub reads every chunk and finds the rotten ones that nobody reads."""
    with open_http(find(endpoint, token, profile)) as http:
        if what in (ScrubAction.pause, ScrubAction.resume):
            _switch(http, what.value, "scrub", as_json)
            return
        wish: dict[str, Any] = {"start": True} if what is ScrubAction.start else {}
        if rate:
            wish["bytes_per_second"] = parse_rate(rate)
        show(http.call("POST", "/v1/admin/scrub", body=wish) if wish else http.get("/v1/admin/scrub"), as_json)


@admin.command()
def repair(
    what: Annotated[RepairAction, typer.Argument(help="Show, pause, resume, go-on.")] = RepairAction.show,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Repair copies the chunks of lost servers and devices elsewhere."""
    with open_http(find(endpoint, token, profile)) as http:
        if what in (RepairAction.pause, RepairAction.resume):
            _switch(http, what.value, "repair", as_json)
        elif what is RepairAction.go_on:
            answer = http.call("POST", "/v1/admin/repair/continue")
            print_json(answer) if as_json else say("the servers that vanished are taken as gone; repair goes on")
        else:
            work = http.get("/v1/admin/jobs", duty="repair", limit=1)["work"]
            status = http.get("/v1/admin/status")
            state = {name: status.get(name) for name in ("stuck_chunks", "repair_halted")}
            show({**state, **(work[0] if work else {})}, as_json)


@admin.command()
def collect(
    agree: Annotated[bool, typer.Option("--agree", help="Orphans may be deleted for a day, however many.")] = False,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Deletion of what nothing refers to: how much waits, and whether it waits for an operator's word."""
    with open_http(find(endpoint, token, profile)) as http:
        if agree:
            http.call("POST", "/v1/admin/collect/agree")
        status = http.get("/v1/admin/status")
    show({name: status.get(name) for name in ("garbage_rows", "garbage_oldest_seconds", "deletion_barred")}, as_json)


def _switch(http: Http, action: str, duty: str, as_json: bool) -> None:
    """Pause, resume or retry a duty, or all of them."""
    answer = http.call("POST", f"/v1/admin/jobs/{action}", body={"duty": duty})
    done = {"pause": "paused", "resume": "resumed", "retry": "tried again"}[action]
    print_json(answer) if as_json else say(f"{duty or 'all background work'}: {done}")


def _act(
    path: str, done: str, endpoint: str | None, token: str | None, profile: Path | None, as_json: bool
) -> None:  # fmt: skip
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.call("POST", path)
    print_json(answer or {}) if as_json else say(done)


# -- keys --------------------------------------------------------------------------------------------------------
@keys.command("list")
def keys_list(endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False) -> None:
    """The access keys and what they may do; never their secrets."""
    with open_http(find(endpoint, token, profile)) as http:
        show(http.get("/v1/admin/keys"), as_json, empty="no keys")


@keys.command("create")
def keys_create(
    user: Annotated[str, typer.Argument(help="Who it is for.")],
    grant: Annotated[list[str] | None, typer.Option(
        help="BUCKET=ROLE or *=ROLE (readonly, readwrite, admin); repeatable. Without: rights come by policies only."
    )] = None,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Make a key. Its secret and token are shown this once."""
    grants: dict[str, str] = {}
    for text in grant or ():
        bucket, separator, role = text.partition("=")
        if not separator or role not in ("readonly", "readwrite", "admin"):
            raise RequestError(f"--grant {text}: write it like photos=readwrite or *=admin")
        grants[bucket] = role
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.call("POST", "/v1/admin/keys", body={"user": user, "grants": grants})
    show(answer, as_json)


@keys.command("delete")
def keys_delete(
    access_key: Annotated[str, typer.Argument(help="The access key.")],
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Take a key away, at once."""
    with open_http(find(endpoint, token, profile)) as http:
        http.call("DELETE", f"/v1/admin/keys/{quote(access_key, safe='')}")
    print_json({"deleted": access_key}) if as_json else say(f"deleted {access_key}")
