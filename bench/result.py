"""One measured bar, and the table of all."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Result:
    """measured against must and aim, both None where only the figure is of interest. cpu_us: of all server processes
    per request."""

    row: str
    measured: float
    must: float | None = None
    aim: float | None = None
    unit: str = "ratio"
    is_less_better: bool = False
    cpu_us: float | None = None
    detail: str = ""

    def _reaches(self, bar: float | None) -> bool:
        if bar is None:
            return True
        return self.measured <= bar if self.is_less_better else self.measured >= bar

    @property
    def is_missed(self) -> bool:
        return not self._reaches(self.must)

    @property
    def verdict(self) -> str:
        if self.is_missed:
            return "MISSED"
        return "" if self.must is None else "aim" if self._reaches(self.aim) else "must"

    def as_json(self) -> dict[str, object]:
        return asdict(self) | {"verdict": self.verdict}


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 20 else f"{value:.3g}"


def print_results(results: list[Result]) -> None:
    """The table, one line per row."""
    print(f"{'row':28s} {'must':>8s} {'aim':>8s} {'measured':>9s} {'unit':8s} {'':6s} {'CPU us/req':>10s}  detail")
    for result in results:
        bar = "<= " if result.is_less_better and result.must is not None else ""
        print(f"{result.row:28s} {bar + _number(result.must):>8s} {_number(result.aim):>8s} "
              f"{_number(result.measured):>9s} {result.unit:8s} {result.verdict:6s} {_number(result.cpu_us):>10s}  "
              f"{result.detail}", flush=True)  # fmt: skip
