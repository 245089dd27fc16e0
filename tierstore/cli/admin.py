"""`tierstore admin ...`: what operators ask and do, over the gateway's /v1/admin.

Answers are printed as the service gives them: a list becomes a table whose columns are its fields. So a new field
of the service shows up here without a change, and --json is the service's own answer.
"""

from __future__ import annotations

import json
import sys
import tomllib
from csv import writer
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from tierstore.cli import whatif
from tierstore.cli.cluster import Endpoint, Http, Json, Profile, Token, find, open_http, parse_place
from tierstore.cli.output import notes, print_fields, print_json, print_table, say
from tierstore.cli.roll import roll
from tierstore.cli.sites import replication, sites
from tierstore.cli.users import users
from tierstore.errors import ConfigError, NotFound, RequestError
from tierstore.units import format_seconds, format_size, parse_rate

admin = typer.Typer(help="What operators ask and do.", no_args_is_help=True)
policy = typer.Typer(help="The tiering policy: versioned documents.", no_args_is_help=True)
keys = typer.Typer(help="Access keys and their rights.", no_args_is_help=True)
admin.add_typer(policy, name="policy")
admin.add_typer(keys, name="keys")
admin.add_typer(users, name="users")
admin.add_typer(sites, name="sites")
admin.add_typer(replication, name="replication")
admin.command("roll")(roll)

_CELL_MAX: Final = 60
#: Shown as 16 hex digits and the like elsewhere; too long for a table.
_HIDDEN: Final = frozenset({"detail_json", "uuid"})


class By(StrEnum):
    object = "object"
    prefix = "prefix"
    bucket = "bucket"
    tier = "tier"


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


def rows_of(answer: Any) -> list[dict[str, Any]]:
    """The list in an answer: the answer itself, or its only list of objects."""
    if isinstance(answer, dict):
        lists = [value for value in answer.values() if isinstance(value, list)]
        answer = lists[0] if len(lists) == 1 else [answer]
    return [row for row in answer if isinstance(row, dict)]


def show(answer: Any, as_json: bool, *, empty: str = "nothing") -> None:
    """An answer of the service: JSON as it is, or a table (fields, when it is one object without lists)."""
    if as_json:
        print_json(answer)
    elif isinstance(answer, dict) and not any(isinstance(value, list) for value in answer.values()):
        print_fields({name: cell(name, value) for name, value in answer.items()})
    elif rows := rows_of(answer):
        columns = [name for name in rows[0] if name not in _HIDDEN]
        numbers = [name for name in columns if isinstance(rows[0][name], int | float) and rows[0][name] is not True]
        print_table(columns, [[cell(name, row.get(name)) for name in columns] for row in rows], right=numbers)
    else:
        say(empty)


def cell(name: str, value: Any) -> str:
    """A value as people read it; the unit is the last word of its name."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if name == "bytes" or name.endswith(("_bytes", "bytes_moved")):
            return format_size(value)
        if name.endswith("bytes_per_second"):
            return f"{format_size(value)}/s"
        if name.endswith("seconds"):
            return format_seconds(value)
        return f"{value:,.3g}" if isinstance(value, float) else str(value)
    if isinstance(value, list):
        inner = [str(part.get("name", part)) if isinstance(part, dict) else str(part) for part in value]
        return ", ".join(inner)[:_CELL_MAX] or "-"
    return json.dumps(value)[:_CELL_MAX] if isinstance(value, dict) else str(value)


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
    show([{name: server.get(name) for name in _SERVER_COLUMNS} for server in answer["servers"]], False)
    say()
    show([{name: tier.get(name) for name in _TIER_COLUMNS} for tier in answer["tiers"]], False)
    busy = [row for row in answer["work"] if row.get("state") != "idle" or row.get("failed")]
    if busy:
        say()
        show(busy, False)
    for warning in answer["warnings"]:
        notes.print(f"warning: {warning}", style="yellow", markup=False)


_SERVER_COLUMNS: Final = ("name", "role", "state", "url", "used_bytes", "capacity_bytes", "load")
_TIER_COLUMNS: Final = ("tier", "devices", "used_bytes", "free_bytes", "capacity_bytes", "chunks")


_USE_COLUMNS: Final = (
    "tier", "reads", "hit_ratio", "byte_hit_ratio", "resident_chunks", "resident_bytes", "lowest_resident_rank",
    "exposed_bytes", "exposed_seconds", "grey_devices",
)  # fmt: skip


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


@admin.command()
def tiers(endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False) -> None:
    """Space, speed and hit ratio of each tier, and what the promoter did."""
    with open_http(find(endpoint, token, profile)) as http:
        space, use = http.get("/v1/admin/tiers")["tiers"], http.get("/v1/admin/tiering")
    if as_json:
        print_json({"tiers": space, "tiering": use})
        return
    show([{name: tier.get(name) for name in (*_TIER_COLUMNS, "read_ms")} for tier in space], False)
    say()
    show([{name: tier.get(name) for name in _USE_COLUMNS} for tier in use["tiers"]], False)
    say()
    print_fields({name: cell(name, value) for name, value in use.items() if not isinstance(value, list)})


@admin.command()
def heat(
    by: Annotated[By, typer.Option(help="What to add up.")] = By.object,
    limit: Annotated[int, typer.Option("--limit", "--top", min=1, max=10_000, help="The hottest so many.")] = 20,
    prefix: Annotated[str, typer.Option(help="Only what begins so: bucket/ or bucket/key.")] = "",
    csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """What is read most."""
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.get("/v1/admin/heat", by=by.value, limit=limit, prefix=prefix)
    if csv:
        table = writer(sys.stdout, lineterminator="\n")
        table.writerow(["name", "heat_per_hour", "bytes", "tier"])
        table.writerows([item["name"], item["heat_per_hour"], item["bytes"], item["tier"]] for item in answer["items"])
        return
    show(answer, as_json, empty="nothing was read yet")


@admin.command()
def explain(
    target: Annotated[str, typer.Argument(help="ts://bucket/key")],
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Why an object is where it is, and what happens to it next."""
    place = parse_place(target, needs_key=True)
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.get(f"/v1/explain/{quote(place.bucket, safe='')}/{quote(place.key)}")
    if as_json:
        print_json(answer)
        return
    print_fields({name: cell(name, value) for name, value in answer.items() if not isinstance(value, list)})
    for chunk in answer.get("chunks", []):
        say()
        print_fields({name: cell(name, value) for name, value in chunk.items() if not isinstance(value, list)})
        for part in ("replicas", "decisions"):
            if chunk.get(part):
                show(chunk[part], False)


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


# -- policy ------------------------------------------------------------------------------------------------------
File = Annotated[Path, typer.Argument(help="Policy document, TOML or JSON.")]


def read_policy(path: Path) -> dict[str, Any]:
    """The tree of a policy file. Raises ConfigError; what it means is checked by the service."""
    try:
        text = path.read_text()
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} is not a policy: it begins with version = 1 and [[rules]]")
    return tree


@policy.command("show")
def policy_show(
    revision: Annotated[int | None, typer.Option(help="An older revision.")] = None,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Print the policy in force, or an older one."""
    from tierstore.policy.document import toml_text

    with open_http(find(endpoint, token, profile)) as http:
        answer = http.get("/v1/admin/policy") if revision is None else _revision(http, revision)
    if as_json:
        print_json(answer)
        return
    say(f"# revision {answer.pop('revision', 0)}")
    say(toml_text(answer).rstrip())


def _revision(http: Http, revision: int) -> dict[str, Any]:
    for row in http.get("/v1/admin/policy/history", limit=1000)["revisions"]:
        if row["revision"] == revision:
            return {**row["policy"], "revision": revision}
    raise NotFound(f"the history has no revision {revision}; see `tierstore admin policy history`")


@policy.command("set")
def policy_set(
    path: File,
    note: Annotated[str, typer.Option(help="Why; stands in the history.")] = "",
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Put a policy in force; the one before stays in the history."""
    document = read_policy(path)
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.call("PUT", "/v1/admin/policy", params={"note": note}, body=document)
    print_json(answer) if as_json else say(f"in force as revision {answer.get('revision')}")


@policy.command("check")
def policy_check(
    path: File,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Say whether a policy would be accepted, without putting it in force."""
    document = read_policy(path)
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.call("POST", "/v1/admin/policy/check", body=document)
    print_json(answer or {}) if as_json else say(f"{path}: no errors")


@policy.command("history")
def policy_history(
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False
) -> None:
    """Who put which revision in force, and when."""
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.get("/v1/admin/policy/history")
    if as_json:
        print_json(answer)
        return
    rows = [[row["revision"], row["at"], row["who"], row["note"]] for row in answer["revisions"]]
    print_table(["revision", "at", "who", "note"], rows) if rows else say("the built-in policy was never changed")


@policy.command("rollback")
def policy_rollback(
    revision: Annotated[int, typer.Argument(help="The revision to put in force again.")],
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Put an older revision in force again, as a new one."""
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.call("POST", "/v1/admin/policy/rollback", body={"revision": revision})
    print_json(answer) if as_json else say(f"revision {revision} is in force again, as {answer.get('revision')}")


@policy.command("simulate")
def policy_simulate(
    path: File,
    hours: Annotated[int, typer.Option(min=1, max=720, help="How much recorded history to replay.")] = 24,
    trace: Annotated[Path | None, typer.Option(help="Replay this trace (CSV time,key,size,op) here instead.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the hit-ratio curves to this SVG file.")] = None,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """What a policy would have done on recorded history, beside the one in force."""
    document = read_policy(path)
    with open_http(find(endpoint, token, profile)) as http:
        if trace is None:
            answer = http.call("POST", "/v1/admin/policy/simulate", body={"policy": document, "hours": hours})
        else:
            requests = whatif.read_trace(trace).latest(hours)
            tiers, tiering = http.get("/v1/admin/tiers")["tiers"], http.get("/v1/admin/tiering")
            fleet = whatif.fleet_of(tiers, tiering, requests.footprint_bytes)
            answer = whatif.replay_here(requests, http.get("/v1/admin/policy"), document, fleet)
    if picture is not None and "curve" in answer["proposed"]:
        try:
            picture.write_text(whatif.picture(answer))
        except OSError as error:
            raise ConfigError(f"{picture}: {error}") from None
    if as_json:
        print_json(answer)
        return
    whatif.show(answer)
    if picture is not None:
        say(f"the curves are in {picture}")


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
