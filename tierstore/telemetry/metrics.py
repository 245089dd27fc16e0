"""Metrics: declared beside the code they count, exposed in Prometheus form, all listed for the reference page.

Names are `tierstore_<noun>_<unit>`, the unit being bytes, seconds, ratio, total (of events) or a plural noun; labels
are few and bounded: tier, role, kind, code. Never a key, a bucket, an address or an id: `_LABELS` is the whole list.

Two ways. Off the hot path: `counter`, `gauge`, `histogram` (prometheus-client; about 1 us an update). On the hot path,
keep plain ints in an object and declare functions that read them at scrape time: `Watch`. Several objects may show
one metric (two devices, several servers in one simulated process): their values are added. All declarations stand at
module level, so that importing the packages is enough to list every metric.

Declaring a metric twice with the same meaning gives the same one; with another meaning it is an error.
"""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_log = logging.getLogger(__name__)
M = TypeVar("M")
Owner = TypeVar("Owner")
Kind = Literal["counter", "gauge", "histogram"]

_NAME = re.compile(r"tierstore(_[a-z0-9]+){2,}")
#: Every label that a metric may have. Their values are from small closed sets.
_LABELS: Final = frozenset(
    {"tier", "role", "kind", "code", "state", "method", "route", "result", "class", "reason", "site", "direction",
     "device", "server"}
)  # fmt: skip
#: Upper bounds of request and job times, seconds.
SECONDS_BUCKETS: Final = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric as the reference page shows it."""

    name: str
    kind: Kind
    description: str
    labels: tuple[str, ...]


#: What a reader answers at scrape time: one number, or label values -> number.
Value = float | Mapping[tuple[str, ...], float]

_declared: dict[str, Declared] = {}
_built: dict[str, Any] = {}
_watched: dict[str, weakref.WeakKeyDictionary[Any, Callable[[Any], Value]]] = {}


def declared() -> list[Declared]:
    """All metrics of the modules imported so far, by name."""
    return sorted(_declared.values(), key=lambda metric: metric.name)


def _declare(name: str, kind: Kind, description: str, labels: Iterable[str]) -> bool:
    """Note a metric; False when it was declared before. Raises ValueError on a bad or contradictory one."""
    metric = Declared(name, kind, description, tuple(labels))
    if name in _declared:
        if _declared[name] != metric:
            raise ValueError(f"metric {name} is declared twice with different meanings")
        return False
    if not _NAME.fullmatch(name) or (kind == "counter") != name.endswith("_total"):
        raise ValueError(f"{name!r} is no metric name: tierstore_<noun>_<unit>; counters, and only they, end in _total")
    if not description or not set(metric.labels) <= _LABELS:
        raise ValueError(f"metric {name} needs a description, and labels out of {sorted(_LABELS)}")
    _declared[name] = metric
    return True


class _Watched(Collector):
    """Reads the watched metrics when somebody scrapes."""

    def collect(self) -> Iterable[Metric]:
        for name, readers in sorted(_watched.items()):
            about = _declared[name]
            family = (CounterMetricFamily if about.kind == "counter" else GaugeMetricFamily)(
                name, about.description, labels=about.labels
            )
            totals: dict[tuple[str, ...], float] = {}
            for owner, read in list(readers.items()):
                values = _value_of(name, read, owner)
                for labels, value in (values.items() if isinstance(values, Mapping) else [((), values)]):
                    totals[labels] = totals.get(labels, 0.0) + value
            for labels, value in totals.items():
                family.add_metric(labels, value)
            yield family


def _value_of(name: str, read: Callable[[Any], Value], owner: object) -> Value:
    """What the reader says; nothing when it cannot say."""
    try:
        return read(owner)
    except Exception as error:  # one owner that cannot say must not take the other figures away
        # Its text only: whoever keeps the error keeps every frame up to the scrape, and all owners in them, alive.
        _log.error("the watched metric %s could not be read: %s", name, repr(error))
        return {}


disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the output and say nothing
#: The library's own, which already tells of the process, the platform and the garbage collector.
REGISTRY: Final = prometheus_client.REGISTRY
REGISTRY.register(_Watched())


def counter(name: str, description: str, labels: Iterable[str] = ()) -> Counter:
    """A count that only rises: inc(), labels(...).inc()."""
    if _declare(name, "counter", description, labels):
        _built[name] = Counter(name, description, tuple(labels), registry=REGISTRY)
    return _of(name, Counter)


def gauge(name: str, description: str, labels: Iterable[str] = ()) -> Gauge:
    """A value that rises and falls: set(), inc(), dec()."""
    if _declare(name, "gauge", description, labels):
        _built[name] = Gauge(name, description, tuple(labels), registry=REGISTRY)
    return _of(name, Gauge)


def histogram(
    name: str, description: str, labels: Iterable[str] = (), buckets: Iterable[float] = SECONDS_BUCKETS
) -> Histogram:
    """A distribution, in seconds unless the name says otherwise: observe()."""
    if _declare(name, "histogram", description, labels):
        _built[name] = Histogram(name, description, tuple(labels), buckets=tuple(buckets), registry=REGISTRY)
    return _of(name, Histogram)


def _of(name: str, kind: type[M]) -> M:
    found = _built.get(name)
    if not isinstance(found, kind):
        raise ValueError(f"metric {name} is watched: it has no object to update")
    return found


class Watch(Generic[Owner]):
    """Metrics that are read from objects of one kind. Declare them at module level, once:

        _STORE: Final = Watch[Store]()
        _STORE.counter("tierstore_things_total", "things stored", lambda store: store.things)

    and `show` each object: it is read at every scrape for as long as it lives (held weakly)."""

    def __init__(self) -> None:
        self._readers: dict[str, Callable[[Owner], Value]] = {}

    def counter(
        self, name: str, description: str, read: Callable[[Owner], Value], labels: Iterable[str] = ()
    ) -> None:
        """A count that only rises, in the object."""
        self._add(name, "counter", description, read, labels)

    def gauge(self, name: str, description: str, read: Callable[[Owner], Value], labels: Iterable[str] = ()) -> None:
        """A value that rises and falls."""
        self._add(name, "gauge", description, read, labels)

    def _add(
        self, name: str, kind: Kind, description: str, read: Callable[[Owner], Value], labels: Iterable[str]
    ) -> None:
        _declare(name, kind, description, labels)
        if name in _built:
            raise ValueError(f"metric {name} is declared as an object: it cannot be watched")
        self._readers[name] = read

    def show(self, owner: Owner) -> None:
        """Read this object's numbers from now on. Safe to repeat."""
        for name, read in self._readers.items():
            _watched.setdefault(name, weakref.WeakKeyDictionary())[owner] = read


def exposition() -> tuple[bytes, str]:
    """The body and the content type of /-/metrics."""
    return generate_latest(REGISTRY), "text/plain; version=0.0.4; charset=utf-8"
