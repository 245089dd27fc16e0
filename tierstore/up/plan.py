"""What `up` will start: processes, ports, directories, settings. Pure: reads and writes nothing.

Ports: metadata B, object servers B+11, B+12, ..., gateway B+80; site k adds 100 (k-1). Every process gets a settings
file of its own; secrets stand in it only as paths of files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tierstore.errors import ConfigError
from tierstore.units import MIB, parse_rate, parse_seconds, parse_size
from tierstore.up.keys import MASTER_KEYS, Keys

SITES_MAX: Final = 9
SITE_PORTS: Final = 100          # from the ports of a site to those of the next
SERVERS_MAX: Final = 60         # the ports between B+11 and B+80
HOST: Final = "127.0.0.1"
#: A dead server's chunks are copied elsewhere after this time: short, as nobody repairs a laptop's object server.
REPAIR_GRACE_SECONDS: Final = 20.0
_SSD_SHARE: Final = 0.2
_SPACE_SHARE: Final = 0.9       # of the free space is given to the devices
_DEVICE_BYTES_MIN: Final = 64 * MIB
_SEGMENT_BYTES_MIN: Final = 1 * MIB
_SEGMENTS_PER_DEVICE: Final = 32
#: What the tiers of one machine's one disk are declared to be (latency in seconds, bytes per second): measured, they
#: would all be the same, and nothing would ever be worth promoting. The model of docs/concepts/tiering.md.
_SPEEDS: Final = {"nvme": (0.05e-3, 4_000_000_000), "ssd": (0.1e-3, 2_000_000_000), "hdd": (8e-3, 160_000_000)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for on the command line. servers, copies: None means as before, or the default."""

    data: Path
    servers: int | None = None
    sites: int = 1
    copies: int | None = None
    port_base: int = 7400
    database_url: str = ""
    ready_file: Path | None = None
    restart: bool = True
    devices: tuple[DeviceWish, ...] = ()
    mem_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceWish:
    """A device of each object server, in place of the usual ssd and hdd. seek_seconds, bytes_per_second: how slow it
    is to be for a demonstration; 0: as it is."""

    tier: str
    capacity_bytes: int
    seek_seconds: float = 0.0
    bytes_per_second: int = 0


def parse_device(text: str) -> DeviceWish:
    """A device from "TIER=SIZE[,SEEK[,RATE]]", as hdd=1GiB,8ms,160MB/s. Raises ConfigError."""
    tier, equals, rest = text.partition("=")
    parts = rest.split(",")
    if not equals or tier not in _SPEEDS or not 1 <= len(parts) <= 3:
        raise ConfigError(f"--device {text}: write it as TIER=SIZE[,SEEK[,RATE]], like hdd=1GiB,8ms,160MB/s")
    return DeviceWish(
        tier=tier, capacity_bytes=parse_size(parts[0]), seek_seconds=parse_seconds(parts[1]) if parts[1:] else 0.0,
        bytes_per_second=parse_rate(parts[2]) if parts[2:] else 0,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a data directory was made with; kept in DATA/cluster.json, so that `up` continues with it."""

    servers: int
    copies: int
    device_bytes: dict[str, int]    # tier -> capacity of each device of that tier
    slowness: dict[str, list[float]] = field(default_factory=dict)  # tier -> [seek seconds, bytes per second]
    mem_bytes: int | None = None    # RAM cache of each object server; None: its own default


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDevice:
    name: str
    tier: str
    path: str
    capacity_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedProcess:
    """One child. settings: the tree of its TOML file. overlaps: a new one may start before the old one has ended.
    refuses: while it is dead its clients are refused: they have others to go to."""

    role: str                       # metadata | objectd | gateway
    name: str
    port: int
    settings: Mapping[str, Any]
    arguments: tuple[str, ...]      # behind the interpreter; the supervisor adds --config and --fd
    devices: tuple[PlannedDevice, ...] = ()
    overlaps: bool = False
    refuses: bool = False
    site: str = "site1"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def argv(self, config: Path, fd: int) -> list[str]:
        return [sys.executable, *self.arguments, "--config", str(config), "--fd", str(fd)]


def shape(options: Options, before: Shape | None, free_bytes: int) -> Shape:
    """The shape to run with. Raises ConfigError when the options cannot be met or would lose data."""
    servers = options.servers or (before.servers if before else 3)
    copies = options.copies or (before.copies if before else 2)
    if not 1 <= options.sites <= SITES_MAX:
        raise ConfigError(f"--sites must be 1..{SITES_MAX}, not {options.sites}")
    if options.sites > 1 and options.database_url:
        raise ConfigError("--database-url: each site has a catalog of its own; start each with an `up` of its own")
    if not 1 <= servers <= SERVERS_MAX:
        raise ConfigError(f"--servers must be 1..{SERVERS_MAX}, not {servers}")
    if not 1 <= copies <= servers:
        raise ConfigError(f"--copies {copies} needs at least {copies} servers, there are {servers}: raise --servers")
    if before and servers < before.servers:
        raise ConfigError(
            f"{options.data} has {before.servers} object servers with data on them: "
            f"run with --servers {before.servers}, or drain one first (tierstore admin drain)"
        )
    if not 1024 <= options.port_base <= 65_000:
        raise ConfigError(f"--port-base must be 1024..65000, not {options.port_base}")
    slowness = {d.tier: [d.seek_seconds, d.bytes_per_second] for d in options.devices}
    if before:
        if options.devices and {d.tier: d.capacity_bytes for d in options.devices} != before.device_bytes:
            raise ConfigError(f"{options.data} has other devices ({before.device_bytes}); --device cannot change them")
        return replace(
            before, servers=servers, copies=copies, slowness=slowness or before.slowness,
            mem_bytes=options.mem_bytes if options.mem_bytes is not None else before.mem_bytes,
        )  # fmt: skip
    if options.devices:
        return Shape(
            servers=servers, copies=copies, device_bytes={d.tier: d.capacity_bytes for d in options.devices},
            slowness=slowness, mem_bytes=options.mem_bytes,
        )  # fmt: skip
    share = free_bytes * _SPACE_SHARE / (servers * options.sites)
    if share * _SSD_SHARE < _DEVICE_BYTES_MIN:
        raise ConfigError(f"{options.data} has {free_bytes / MIB:.0f} MiB free space: too little for {servers} servers")
    return Shape(
        servers=servers,
        copies=copies,
        device_bytes={"ssd": int(share * _SSD_SHARE) // MIB * MIB, "hdd": int(share * (1 - _SSD_SHARE)) // MIB * MIB},
        mem_bytes=options.mem_bytes,
    )


def processes(options: Options, what: Shape, keys: Keys) -> list[PlannedProcess]:
    """The processes of all sites; of each, metadata first."""
    return [p for number in range(1, options.sites + 1) for p in _site(options, what, keys, number)]


def _site(options: Options, what: Shape, keys: Keys, site: int) -> list[PlannedProcess]:
    """One site: names and directories of the first are bare, those of site k begin with "site<k>"."""
    base = options.port_base + SITE_PORTS * (site - 1)
    label = f"site{site}"
    data = options.data if site == 1 else options.data / label
    prefix = "" if site == 1 else f"{label}-"
    metadata_url = f"http://{HOST}:{base}"
    # Of all daemons: how they join, and the token that opens their metrics, the administrator's own.
    join = {
        "auth": {"join_token_file": keys.file("join_token")},
        "telemetry": {"metrics_token_file": keys.file("token")},
    }

    def listen(port: int) -> dict[str, Any]:
        return {"listen": {"host": HOST, "port": port, "advertise": f"http://{HOST}:{port}"}}

    def membership(name: str) -> dict[str, Any]:
        return {"membership": {"metadata": [metadata_url], "name": name, "data": str(data / name / "state")}}

    catalog: dict[str, Any] = {"data": str(data / "metadata")}
    if options.database_url:
        catalog["url"] = options.database_url
    planned = [
        PlannedProcess(
            role="metadata", name=f"{prefix}metadata1", site=label, port=base, arguments=("-m", "metadata", "serve"),
            settings={
                **listen(base),
                "catalog": catalog,
                "placement": {"site": label, "site_number": site, "copies": what.copies},
                "timers": {"repair_grace": REPAIR_GRACE_SECONDS},
                "root": {
                    "access_key": keys.access_key,
                    "secret_key_file": keys.file("secret_key"),
                    "token_file": keys.file("token"),
                },
                **join,
            },
        )
    ]  # fmt: skip
    for number in range(1, what.servers + 1):
        name, port = f"{prefix}objectd{number}", base + 10 + number
        devices = tuple(
            PlannedDevice(name=f"{name}-{tier}", tier=tier, path=str(data / name / tier), capacity_bytes=size)
            for tier, size in what.device_bytes.items()
        )
        planned.append(
            PlannedProcess(
                role="objectd", name=name, site=label, port=port, arguments=("-m", "objectd"), devices=devices,
                refuses=True,
                settings={
                    **listen(port), **membership(name), **join,
                    "devices": [_device(d, what) for d in devices],
                    "chunks": _chunks(what),
                },
            )
        )  # fmt: skip
    planned.append(
        PlannedProcess(
            role="gateway", name=f"{prefix}gateway1", site=label, port=base + 80,
            arguments=("-m", "tierstore.gateway"), overlaps=True,
            settings={
                **listen(base + 80), **membership(f"{prefix}gateway1"), **join,
                "s3": {"master_keys_file": keys.file(MASTER_KEYS)},
            },
        )
    )  # fmt: skip
    return planned


def _device(device: PlannedDevice, what: Shape) -> dict[str, Any]:
    latency, rate = _SPEEDS.get(device.tier, _SPEEDS["hdd"])
    settings: dict[str, Any] = {
        "path": device.path, "tier": device.tier, "capacity": device.capacity_bytes, "read_latency": latency,
        "read_rate": rate,
    }  # fmt: skip
    seek, pace = what.slowness.get(device.tier, [0.0, 0])
    if seek or pace:
        settings |= {"simulate_seek": seek, "simulate_rate": int(pace)}
    return settings


def _chunks(what: Shape) -> dict[str, Any]:
    """Segments that a small device has many of, so that what dies in them can be freed; the RAM cache."""
    smallest = min(what.device_bytes.values())
    segment_bytes = max(smallest // _SEGMENTS_PER_DEVICE // MIB * MIB, _SEGMENT_BYTES_MIN)
    settings: dict[str, Any] = {}
    if segment_bytes < 256 * MIB:
        settings["segment_bytes"] = segment_bytes
    if what.mem_bytes is not None:
        settings["mem_bytes"] = what.mem_bytes
    return settings
