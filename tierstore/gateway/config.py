"""Settings of a gateway. Owns nothing; what all daemons share is tierstore.config.sections'."""

from __future__ import annotations

from dataclasses import dataclass

from tierstore.config.load import Seconds, Size, secret, section, setting
from tierstore.config.sections import Auth, Limits, Listen, Log, Membership, Telemetry, Timers, Tls
from tierstore.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploads:
    """Bodies on their way through the gateway."""

    buffer_bytes_max: Size = setting(256 * MIB, "bodies of uploads held in memory, all together; further ones wait")
    chunks_in_flight_max: int = setting(2, "whole chunks of one upload on their way while the next one fills")
    straggler: Seconds = setting(1.5, "after the other copies are stored, before a spare server gets the chunk too")
    placement_wait: Seconds = setting(10.0, "for servers that restart, while without them there are too few")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3:
    """The S3 door."""

    master_keys: str = secret("", "NAME:BASE64 of 32 random bytes, the first is the default; empty: no SSE-S3, SSE-KMS")
    customer_keys_over_http: bool = setting(False, "take customers' keys (SSE-C) although this port speaks plain HTTP")
    domain: str = setting("", "requests to BUCKET.DOMAIN are virtual-host style; empty: path style only")
    redirect_near: bool = setting(
        False, "answer 307 to clients whose address is in a network of another site; they must sign again for it"
    )
    access_log_every: Seconds = setting(300.0, "how often access logs are delivered to their target buckets")
    access_log_paused: bool = setting(
        False, "deliver no access logs; 16 MiB of lines wait in memory, further ones are dropped and counted"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """All settings of `python -m tierstore.gateway`."""

    listen: Listen = section(Listen, port=7480)
    membership: Membership = section(Membership, data="data/gateway")
    uploads: Uploads = section(Uploads)
    s3: S3 = section(S3)
    tls: Tls = section(Tls)
    auth: Auth = section(Auth)
    limits: Limits = section(Limits)
    timers: Timers = section(Timers, hedge=0.05)
    log: Log = section(Log)
    telemetry: Telemetry = section(Telemetry)

    def __post_init__(self) -> None:
        if not self.membership.metadata:
            raise ValueError("membership.metadata needs at least one URL")

    @property
    def name(self) -> str:
        """The gateway's name in the site."""
        return self.membership.name or f"gateway-{self.listen.port}"
