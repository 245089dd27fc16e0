"""The sections that all daemons share. What one daemon alone needs stands in its own config module.

Invariant: every bound of a queue, loop or request that a daemon has is a setting of [limits] with a name, a unit and a
reason; every time that a daemon waits is one of [timers].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tierstore.config.load import Rate, Seconds, Size, secret, setting
from tierstore.units import GIB, KIB, MIB

#: The sections of all daemons (a test compares), so that one environment may serve them all.
SECTIONS: Final = frozenset(
    {"listen", "limits", "timers", "log", "telemetry", "auth", "membership", "background"}
    | {"catalog", "placement", "duties", "jobs", "root", "users", "webhooks"}
    | {"devices", "chunks", "upkeep"}
    | {"uploads", "s3"}
    | {"tls"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """The one port of the daemon and the one address it tells others."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 for all")
    port: int = setting(0, "port to listen on; 0 lets the system choose")
    fd: int = setting(-1, "inherited listening descriptor to serve on in place of host and port; -1: none")
    advertise: str = setting("", "URL under which others reach this daemon; default: http://host:port")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be 0..65535, not {self.port}")

    @property
    def url(self) -> str:
        """What to advertise when the port is fixed."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return self.advertise.rstrip("/") or f"http://{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of what a client or a peer may ask for at once."""

    header_bytes_max: Size = setting(16 * KIB, "request line and headers together; more is answered 431")
    connections_max: int = setting(10_000, "open client connections; further ones are closed at once")
    connections_per_address_max: int = setting(1_000, "open client connections from one address")
    requests_in_flight_max: int = setting(2_000, "requests under way; further ones get 503 with Retry-After")
    small_body_bytes_max: Size = setting(4 * MIB, "bodies that are collected in memory: JSON and internal messages")
    object_bytes_max: Size = setting(5 * 1024 * GIB, "largest object")
    peer_connections_max: int = setting(64, "kept connections to one other daemon")
    batch_items_max: int = setting(256, "lookups, commits or allocations that travel as one message")
    queue_items_max: int = setting(10_000, "waiting items of any internal queue, after which callers get 503")
    executor_threads_max: int = setting(8, "threads for blocking work of the process, beside those of its devices")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timers:
    """How long the daemon waits, and when it judges another one."""

    heartbeat: Seconds = setting(1.0, "between two heartbeats of a server")
    suspect: Seconds = setting(3.0, "without a heartbeat: readers prefer other servers")
    no_placement: Seconds = setting(5.0, "without a heartbeat: no new chunks go there")
    dead: Seconds = setting(20.0, "without a heartbeat: the server counts as gone")
    repair_grace: Seconds = setting(600.0, "after a server is dead, before its chunks are copied elsewhere")
    announced_restart: Seconds = setting(120.0, "how long a drained server may be away before it counts as gone")
    header: Seconds = setting(10.0, "for the head of a request to arrive")
    idle: Seconds = setting(60.0, "an idle connection is kept")
    body_stall: Seconds = setting(30.0, "without progress of a body, after which the connection is closed")
    request: Seconds = setting(30.0, "for one request to another daemon, when the caller gives no deadline")
    metadata_restart: Seconds = setting(10.0, "requests are held while the metadata service restarts")
    hedge: Seconds = setting(0.2, "without a first byte, after which another replica is asked as well")
    drain: Seconds = setting(30.0, "for running requests to end when the daemon stops")


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One line per event, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = setting("info", "least level that is written")
    format: Literal["keyvalue", "json"] = setting("keyvalue", "form of a line")


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What the daemon shows of itself."""

    metrics: bool = setting(True, "serve Prometheus metrics at /-/metrics")
    metrics_public: bool = setting(False, "metrics need no key; they never hold a key or bucket name")
    metrics_token: str = secret("", "bearer token that opens the metrics, and nothing else, beside the daemon's own")


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """How daemons know each other."""

    join_token: str = secret("", "lets a new daemon join the cluster; each server uses it once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """How an object server or gateway finds its cluster: [membership]."""

    metadata: tuple[str, ...] = setting(("http://127.0.0.1:7400",), "URLs of the metadata services of this site")
    name: str = setting("", "name of this server, unique in the site; default: host name and port")
    data: str = setting("", "directory where the server keeps its identity and secret (mode 0700)")
    failure_domain: str = setting("", "servers with the same text may fail together; default: each its own")


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """What repair, scrub and moves may take from the devices and the network."""

    job_slots: int = setting(4, "jobs an object server runs at once")
    copy_rate: Rate = setting(200 * MIB, "bytes per second of all copies of a server")
    scrub_rate: Rate = setting(20 * MIB, "bytes per second the scrub reads from a device")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """HTTPS of a gateway, and whom daemons believe when they call one of another site: [tls]."""

    certificate: str = setting("", "PEM of the gateway's certificate and its chain; empty: plain HTTP")
    key: str = setting("", "PEM of its private key")
    ca_file: str = setting("", "PEM of the CA that signs other sites' gateways; empty: the system's")

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together")
