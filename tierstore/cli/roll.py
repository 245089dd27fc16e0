"""`tierstore admin roll`: drain, restart and return of every process, one after another, while clients go on.

The supervisor restarts a process on its own socket (tierstore.up); between two object servers this waits until the
cluster sees the one that returned as up again, so that never two copies of a chunk are away. Order: object servers,
metadata, gateways last, so that they see the new ones.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from tierstore.cli.cluster import Address, Endpoint, Http, Json, Profile, Token, find, open_http
from tierstore.cli.output import print_json, say
from tierstore.errors import RequestError, UnavailableError
from tierstore.up import control

RESTART_SECONDS_MAX: Final = 120.0
RETURN_SECONDS_MAX: Final = 120.0
_POLL_SECONDS: Final = 0.2
_AWAY: Final = frozenset({"suspect", "dead", "stopping"})
_ORDER: Final = ("objectd", "metadata", "gateway")


def roll(
    names: Annotated[list[str] | None, typer.Argument(help="Only these processes; nothing: all.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data directory of `tierstore up`. [env: TIERSTORE_DATA]")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often.")] = 1,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Restart every process, one after another, with no failed client request."""
    address = find(endpoint, token, profile)
    directory = data or Path(os.environ.get("TIERSTORE_DATA") or address.data or "data")
    done: list[dict[str, Any]] = []
    for _ in range(rounds):
        for process in _chosen(directory, names or []):
            _wait_whole(address)
            if process["role"] == "objectd":
                _announce(address, process["name"])
            request = {"command": "restart", "name": process["name"]}
            answer = control.ask(directory, request, seconds=RESTART_SECONDS_MAX)
            done.append(answer)
            if not as_json:
                say(f"{answer['name']:<10} restarted in {answer['seconds']:.2f} s, pid {answer['pid']}")
    _wait_whole(address)
    if as_json:
        print_json({"restarted": done})


def _chosen(directory: Path, names: list[str]) -> list[dict[str, Any]]:
    processes = control.ask(directory, {"command": "status"}, seconds=10)["processes"]
    known = [process["name"] for process in processes]
    for name in names:
        if name not in known:
            raise RequestError(f"{name!r} is none of the processes: {', '.join(known)}")
    chosen = [process for process in processes if not names or process["name"] in names]
    return sorted(chosen, key=lambda process: _ORDER.index(process["role"]))


def _announce(address: Address, name: str) -> None:
    """Tell the cluster, so that nobody begins to repair what is only away for a moment."""
    with open_http(address) as http:
        http.call("POST", f"/v1/admin/servers/{quote(name, safe='')}/restart")


def _wait_whole(address: Address) -> None:
    """Until the cluster sees every object server as up. Raises UnavailableError after RETURN_SECONDS_MAX."""
    deadline = time.monotonic() + RETURN_SECONDS_MAX
    with open_http(address) as http:
        while away := _away(http):
            if time.monotonic() > deadline:
                raise UnavailableError(f"{', '.join(away)} did not return; the rest was not restarted")
            time.sleep(_POLL_SECONDS)


def _away(http: Http) -> list[str]:
    try:
        answer = http.get("/v1/admin/servers")
    except UnavailableError as error:
        return [f"the cluster ({error.detail or error.code})"]
    return [
        str(server["name"])
        for server in answer["servers"]
        if server["role"] == "objectd" and (server["state"] in _AWAY or not _is_settled(server))
    ]


def _is_settled(server: dict[str, Any]) -> bool:
    """Whether a server that came back counts for N+1 again: its announced restart is over, its devices are reconciled,
    and new chunks are placed on it, unless an operator has it emptied."""
    takes_new = server["takes_new"] or server["state"] in {"draining", "drained"}
    return (
        takes_new and not server["restart_seconds_left"] and all(d["is_reconciled"] for d in server["devices"])
    )
