"""`tierstore admin compare`: what object servers hold against what the catalog says."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from tierstore.cli.cluster import Endpoint, Json, Profile, Token, find, open_http
from tierstore.cli.output import print_json, print_table, say
from tierstore.errors import IntegrityError
from tierstore.units import format_size

_POLL_SECONDS: Final = 1.0
#: Differences shown one by one; --json has all that the service kept.
_SHOWN_MAX: Final = 50


class CompareAction(StrEnum):
    show = "show"
    start = "start"


def compare(
    what: Annotated[CompareAction, typer.Argument(help="Show the last result, or compare anew.")] = CompareAction.show,
    wait: Annotated[bool, typer.Option("--wait", help="Until finished; exit code 8 when anything differs.")] = False,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Compare what all devices hold with the catalog: missing, unknown, other size or checksum. Changes nothing."""
    with open_http(find(endpoint, token, profile)) as http:
        path = "/v1/admin/compare"
        answer = http.call("POST", path) if what is CompareAction.start else http.get(path)
        while wait and answer["is_running"]:
            time.sleep(_POLL_SECONDS)
            answer = http.get(path)
    if as_json:
        print_json(answer)
    else:
        _show(answer)
    if wait and answer["differences"]:
        raise IntegrityError(f"{answer['differences']} differences between the devices and the catalog")


def _show(answer: dict[str, Any]) -> None:
    if answer["started_at"] is None:
        say("never compared: `tierstore admin compare start`")
        return
    columns = ["chunks", "missing", "unknown", "size_differs", "checksum_differs", "pending"]
    rows = [
        [d["name"], d["state"], f"{d['progress']:.0%}", *(str(d[c]) for c in columns), format_size(d["bytes"])]
        for d in answer["devices"]
    ]
    print_table(["device", "state", "progress", *columns, "bytes"], rows, right=["progress", *columns, "bytes"])
    findings = [(d["name"], f) for d in answer["devices"] for f in d["findings"]]
    for name, finding in findings[:_SHOWN_MAX]:
        say(f"{name} {finding['chunk']} {finding['what']} {finding['detail']}".rstrip())
    if answer["unreached"]:
        say(f"not reached: {', '.join(answer['unreached'])}")
    say(f"{answer['differences']} differences" if not answer["is_running"] else "under way")
