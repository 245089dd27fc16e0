"""`tierstore up`: options in, endpoints and the first commands out. The work is tierstore.up's."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tierstore.cli.output import notes, print_json, say
from tierstore.telemetry import log
from tierstore.units import parse_size
from tierstore.up import plan, supervisor


def up(
    data: Annotated[Path, typer.Option(help="Directory of the cluster; made if it does not exist.")] = Path("data"),
    servers: Annotated[int | None, typer.Option(help="Object servers. [default: 3, or as before]")] = None,
    sites: Annotated[int, typer.Option(help="Sites.")] = 1,
    copies: Annotated[int | None, typer.Option(help="Copies of every object. [default: 2, or as before]")] = None,
    port_base: Annotated[int, typer.Option(help="metadata B, object servers B+11.., gateway B+80.")] = 7400,
    database_url: Annotated[str, typer.Option(help="PostgreSQL in place of the embedded catalog.")] = "",
    ready_file: Annotated[Path | None, typer.Option(help="Written as JSON when every process answers.")] = None,
    restart: Annotated[bool, typer.Option("--restart/--no-restart", help="Start dead processes again.")] = True,
    device: Annotated[list[str] | None, typer.Option(
        help="TIER=SIZE[,SEEK[,RATE]], like hdd=1GiB,8ms,160MB/s: a device of each object server in place of the usual "
        "ssd and hdd; SEEK and RATE make it that slow, for demonstrations. Repeatable.",
    )] = None,
    mem: Annotated[str, typer.Option(help="RAM cache of each object server, like 64MiB; 0: none.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print what the ready file holds.")] = False,
) -> None:
    """Start a whole cluster on this machine. Ctrl-C stops it; the same --data continues it."""
    log.configure(role="up")
    options = plan.Options(
        data=data, servers=servers, sites=sites, copies=copies, port_base=port_base, database_url=database_url,
        ready_file=ready_file, restart=restart, devices=tuple(plan.parse_device(text) for text in device or ()),
        mem_bytes=parse_size(mem) if mem else None,
    )  # fmt: skip

    def report(ready: dict[str, Any], warnings: list[str]) -> None:
        if as_json:
            print_json(ready)
        else:
            _welcome(ready, data)
        for warning in warnings:
            notes.print(f"warning: {warning}", style="yellow", markup=False)

    raise typer.Exit(supervisor.run(options, report))


def _welcome(ready: dict[str, Any], data: Path) -> None:
    say(f"tierstore is ready; data in {data}, logs in {data / 'logs'}")
    say()
    for process in (process for each in ready["sites"] for process in each["processes"]):
        tiers = ", ".join(device["tier"] for device in process["devices"])
        say(f"  {process['name']:<16} {process['url']}" + (f"   {tiers}" if tiers else ""))
    say()
    say("In another terminal:")
    say()
    say(f"  export TIERSTORE_ENDPOINT={ready['sites'][0]['gateway']}")
    say(f"  export TIERSTORE_TOKEN={ready['token']}")
    say()
    name = _command()
    say(f"  {name} mb ts://photos")
    say(f"  {name} cp README.md ts://photos/README.md")
    say(f"  {name} admin status")
    say()


def _command() -> str:
    """How this program is called from here: its name when that is on the PATH, else the path it was started by."""
    found = shutil.which("tierstore")
    own = Path(sys.argv[0])
    is_found = found is not None and Path(found).resolve() == own.resolve()
    return "tierstore" if is_found or own.name != "tierstore" else str(own)
