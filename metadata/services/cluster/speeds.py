"""How fast each device is, and which fast ones have become slow without failing (grey). Pure: reads the view only."""

from __future__ import annotations

from collections import defaultdict

from metadata.services.cluster.view import ClusterView, DeviceInfo
from tierstore.names import TIERS
from tierstore.policy.simulate import SPEEDS, Speed


def speed_of(device: DeviceInfo) -> Speed:
    """Measured or declared; what its server does not know is typical of the tier."""
    typical = SPEEDS.get(device.tier, SPEEDS["hdd"])
    return Speed(
        device.read_ms / 1000 if device.read_ms > 0 else typical.seconds,
        device.read_bytes_per_second if device.read_bytes_per_second > 0 else typical.bytes_per_second,
    )


def grey_devices(view: ClusterView) -> frozenset[int]:
    """Fast devices on which a 64 KiB read takes as long as on some device of a slower tier: failing, though they
    answer. Readers do not prefer them."""
    by_tier: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for info in view.devices.values():
        if view.can_read(info.id):
            speed = speed_of(info)
            by_tier[info.tier].append((info.id, speed.seconds + 65_536 / speed.bytes_per_second))
    grey: set[int] = set()
    slower = float("inf")
    for tier in sorted(by_tier, key=lambda t: -TIERS.index(t) if t in TIERS else 0):
        grey.update(device for device, seconds in by_tier[tier] if seconds >= slower)
        slower = min([slower, *(seconds for device, seconds in by_tier[tier] if device not in grey)])
    return frozenset(grey)
