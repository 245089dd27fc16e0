"""The settings of the real daemons: described, loadable, and all of them used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import metadata.config
import objectd.config
from tierstore.config.load import describe, load
from tierstore.config.sections import SECTIONS, Listen

ROOT = Path(__file__).parents[3]
DAEMONS: dict[str, type[Any]] = {"metadata": metadata.config.Settings, "objectd": objectd.config.ObjectdConfig}
try:
    import tierstore.gateway.config as gateway_config
except ImportError:  # pragma: no cover
    gateway_config = None  # type: ignore[assignment]
else:
    DAEMONS["gateway"] = gateway_config.GatewayConfig


@pytest.mark.parametrize("name", DAEMONS)
def test_a_daemon_starts_from_defaults_and_describes_every_setting(name: str) -> None:
    """Defaults that do not load would break the first start of everybody."""
    load(DAEMONS[name])
    assert [entry.path for entry in describe(DAEMONS[name]) if not entry.description] == []


def test_the_list_of_sections_is_true() -> None:
    """A section that is missing there makes a shared environment fail."""
    assert {entry.section for kind in DAEMONS.values() for entry in describe(kind)} == SECTIONS


def test_the_advertised_address_is_one_that_others_can_reach() -> None:
    """0.0.0.0 is where one listens, not where one is."""
    assert Listen(host="0.0.0.0", port=7400).url == "http://127.0.0.1:7400"
    assert Listen(port=7400, advertise="http://store:7400/").url == "http://store:7400"
    with pytest.raises(ValueError, match="port"):
        Listen(port=70_000)


def test_every_setting_is_read_somewhere() -> None:
    """A setting that nothing reads is a lie to the operator who sets it."""
    source = "\n".join(
        path.read_text()
        for package in ("tierstore", "metadata", "objectd")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "sections.py"
    )
    settings = {entry.path: entry for kind in DAEMONS.values() for entry in describe(kind)}
    unused = set()
    for path, entry in settings.items():
        # either read as section.name, or the section is passed on whole and the name is read somewhere
        is_passed_on = entry.in_table or re.search(rf"\.{entry.section}\b(?!\.)", source)
        if not re.search(rf"\b{path}\b", source) and not (is_passed_on and re.search(rf"\.{entry.name}\b", source)):
            unused.add(path)
    assert unused == set()


@pytest.mark.parametrize(
    ("section", "setting"),
    [
        ("Duties", {"orphan_after": 0.0}), ("Duties", {"inventory_interval": 0.0}),
        ("Duties", {"deleted_share_max": 0.0}), ("Duties", {"deleted_share_max": 1.5}),
        ("Catalog", {"journal_interval": 0.0}), ("Catalog", {"journal_interval": 600.0}),
        ("Placement", {"copies": 0}),
    ],
)  # fmt: skip
def test_settings_of_metadata_that_make_no_sense_are_refused(section: str, setting: dict[str, Any]) -> None:
    """A safety mark of 0 would stop collection for ever, or let all of it go; better no start."""
    with pytest.raises(ValueError, match=next(iter(setting))):
        getattr(metadata.config, section)(**setting)
