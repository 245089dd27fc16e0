"""`tierstore admin tiers`, `heat`, `history` and `explain`: what is read, what is where, and why."""

from __future__ import annotations

import csv as comma
import io
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from tierstore.cli import columns
from tierstore.cli.answers import cell, show
from tierstore.cli.cluster import Endpoint, Json, Profile, Token, find, open_http, parse_place
from tierstore.cli.output import print_fields, print_json, say

_SPACE_COLUMNS: Final = ("tier", "devices", "used_bytes", "free_bytes", "capacity_bytes", "chunks")
_HEAT_COLUMNS: Final = ("name", "heat_per_hour", "bytes", "tier")
_USE_COLUMNS: Final = (
    "tier", "reads", "hit_ratio", "byte_hit_ratio", "resident_chunks", "resident_bytes", "lowest_resident_rank",
    "exposed_bytes", "exposed_seconds", "grey_devices",
)  # fmt: skip


class By(StrEnum):
    object = "object"
    prefix = "prefix"
    bucket = "bucket"
    tier = "tier"


def tiers(endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False) -> None:
    """Space, speed and hit ratio of each tier, and what the promoter did."""
    with open_http(find(endpoint, token, profile)) as http:
        space, use = http.get("/v1/admin/tiers")["tiers"], http.get("/v1/admin/tiering")
    if as_json:
        print_json({"tiers": space, "tiering": use})
        return
    show([{name: tier.get(name) for name in (*_SPACE_COLUMNS, "read_ms")} for tier in space], False)
    say()
    show([{name: tier.get(name) for name in _USE_COLUMNS} for tier in use["tiers"]], False)
    say()
    print_fields({name: cell(name, value) for name, value in use.items() if not isinstance(value, list)})


def heat(
    by: Annotated[By, typer.Option(help="What to add up.")] = By.object,
    limit: Annotated[int, typer.Option("--limit", "--top", min=1, max=10_000, help="The hottest so many.")] = 20,
    prefix: Annotated[str, typer.Option(help="Only what begins so: bucket/ or bucket/key.")] = "",
    csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
    export: Annotated[Path | None, typer.Option(help="Write them to this file, .csv or .parquet.")] = None,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """What is read most."""
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.get("/v1/admin/heat", by=by.value, limit=limit, prefix=prefix)
    if export is not None:
        columns.save(export, answer["items"], _HEAT_COLUMNS)
        print_json({"file": str(export), "rows": len(answer["items"])}) if as_json else say(f"written to {export}")
    elif csv:
        table = comma.writer(sys.stdout, lineterminator="\n")
        table.writerow(_HEAT_COLUMNS)
        table.writerows([item[name] for name in _HEAT_COLUMNS] for item in answer["items"])
    else:
        show(answer, as_json, empty="nothing was read yet")


def history(
    hours: Annotated[int, typer.Option(min=1, max=720, help="How far back.")] = 24,
    export: Annotated[Path | None, typer.Option(help="Write them to this file, .csv or .parquet.")] = None,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """The recorded accesses, as `admin policy simulate --trace` and others read them: time,key,size,op."""
    with open_http(find(endpoint, token, profile)) as http:
        text = http.text("/v1/admin/history", hours=hours)
    if export is None and not as_json:
        sys.stdout.write(text)
        return
    rows: list[dict[str, Any]] = [
        {"time": float(row["time"]), "key": row["key"], "size": int(row["size"]), "op": row["op"]}
        for row in comma.DictReader(io.StringIO(text))
    ]
    if export is None:
        print_json({"accesses": rows})
        return
    columns.save(export, rows, ("time", "key", "size", "op"))
    said = {"file": str(export), "rows": len(rows)}
    print_json(said) if as_json else say(f"{len(rows)} accesses written to {export}")


def explain(
    target: Annotated[str, typer.Argument(help="ts://bucket/key")],
    version: Annotated[str, typer.Option("--version", help="A version in place of the latest.")] = "",
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Why an object is where it is, and what happens to it next."""
    place = parse_place(target, needs_key=True)
    with open_http(find(endpoint, token, profile)) as http:
        asked = {"version": version} if version else {}
        answer = http.get(f"/v1/explain/{quote(place.bucket, safe='')}/{quote(place.key)}", **asked)
    if as_json:
        print_json(answer)
        return
    past = answer.pop("heat_history", None)
    print_fields({name: cell(name, value) for name, value in answer.items() if not isinstance(value, list)})
    if past is not None and past["hours"]:
        say()
        say("reads and heat by the hour" + ("" if past["is_recorded"] else ": not among the recorded keys"))
        show([{"until": _clock(hour["until"]), **{k: v for k, v in hour.items() if k != "until"}}
              for hour in past["hours"] if hour["reads"] or hour["heat_per_hour"] >= 0.01], False)  # fmt: skip
    if answer.get("chunks_total", 0) > len(answer["chunks"]):
        say()
        say(f"the first {len(answer['chunks'])} of {answer['chunks_total']} chunks")
    for chunk in answer.get("chunks", []):
        say()
        print_fields({name: _said(name, value) for name, value in chunk.items() if not isinstance(value, list)})
        for part in ("replicas", "decisions"):
            if chunk.get(part):
                show([{name: _said(name, value) for name, value in row.items()} for row in chunk[part]], False)


def _said(name: str, value: Any) -> Any:
    """A field of an explanation as people read it: what happens next as a sentence, moments as times."""
    if name == "next" and value:
        to = f" to {value['to_tier']}" if value["to_tier"] else ""
        return f"{value['action']}{to}: {value['why']}"
    return _clock(value) if name == "at" else cell(name, value)


def _clock(at: float) -> str:
    """Day and time of a moment, UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))
