"""What an operator may set of the way to a site: bandwidth, by the time of the day; networks; gateways. Pure."""

from __future__ import annotations

import ipaddress
from typing import Any, Final

from tierstore.errors import ConfigError, RequestError
from tierstore.units import parse_rate

#: Of the time that bodies may travel while clients are busy at the sending site, unless the operator says otherwise.
SHARE: Final = 0.5


def checked_link(changes: dict[str, Any]) -> dict[str, Any]:
    """Raises RequestError that names the member."""
    out: dict[str, Any] = {}
    for name, value in changes.items():
        if value is None:
            continue
        if name == "networks":
            try:
                out[name] = [str(ipaddress.ip_network(text, strict=False)) for text in value]
            except ValueError as error:
                raise RequestError(f"networks: {error}", code="bad-site") from None
        elif name == "rate":
            out[name] = value
            rate_of(value)
        elif name == "schedule":
            out[name] = [{"from": _minute(s["from"]), "to": _minute(s["to"]), "rate": s["rate"]} for s in value]
            for span in value:
                rate_of(span["rate"])
        else:
            out[name] = value
    return out


def rate_of(text: str) -> int:
    """Bytes per second of "25MiB/s"; 0 of "": no limit. Raises RequestError."""
    if not text:
        return 0
    try:
        return parse_rate(text)
    except (ConfigError, ValueError) as error:
        raise RequestError(f"rate: {error}", code="bad-site") from None


def _minute(text: str) -> str:
    hours, _, minutes = text.partition(":")
    if not (hours.isdigit() and minutes.isdigit() and int(hours) < 24 and int(minutes) < 60):
        raise RequestError(f"schedule: {text!r} is not like 22:00", code="bad-site")
    return f"{int(hours):02}:{int(minutes):02}"


def bandwidth(link: dict[str, Any], now_ms: int) -> int:
    """Bytes per second to a site at this time of the day (UTC); 0: no limit."""
    minutes = now_ms // 60_000 % 1440
    at = f"{minutes // 60:02}:{minutes % 60:02}"
    for span in link.get("schedule") or ():
        start, stop = span["from"], span["to"]
        if (start <= at < stop) if start <= stop else (at >= start or at < stop):
            return rate_of(span["rate"])
    return rate_of(link.get("rate") or "")
