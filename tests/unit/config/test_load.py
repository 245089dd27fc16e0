"""Settings: precedence, units, secrets, and errors that tell the way out."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierstore.config import toml
from tierstore.config.arguments import parse, settings_of, settings_parser
from tierstore.config.load import Rate, Seconds, Size, as_tree, describe, load, secret, section, setting, tables
from tierstore.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    path: str = setting(description="where")
    tier: Literal["ssd", "hdd"] = setting("hdd", "speed")
    capacity: Size = setting(0, "bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    port: int = setting(80, "number")
    wait: Seconds = setting(1.0, "time")
    rate: Rate = setting(1024, "rate")
    share: float = setting(0.5, "share")
    is_open: bool = setting(False, "open or not")
    peers: tuple[str, ...] = setting((), "others")
    key: str = secret("", "key")

    def __post_init__(self) -> None:
        if self.port == 13:
            raise ValueError("port 13 is unlucky")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    door: Door = section(Door, port=7480)
    disks: tuple[Disk, ...] = tables(Disk, "disks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    fd: int = setting(-1, "descriptor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    listen: Listen = section(Listen)
    door: Door = section(Door)


def toml_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.toml"
    path.write_text(text)
    return path


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    """The published order; an operator who sets a flag must get it."""
    file = toml_file(tmp_path, '[door]\nport = 1\nwait = "2s"\nshare = 0.25\n')
    settings = load(
        Settings, file=file, environ={"TIERSTORE_DOOR__PORT": "2", "TIERSTORE_DOOR__WAIT": "3s"}, flags={"door.port": 3}
    )
    assert settings.door == Door(port=3, wait=3.0, share=0.25)
    assert load(Settings).door.port == 7480, "a section's own default"


def test_units_lists_and_truth_values_are_converted(tmp_path: Path) -> None:
    """Text from the environment and typed values from TOML end as the same values."""
    environ = {
        "TIERSTORE_DOOR__WAIT": "250ms",
        "TIERSTORE_DOOR__RATE": "50MiB/s",
        "TIERSTORE_DOOR__IS_OPEN": "yes",
        "TIERSTORE_DOOR__PEERS": "http://a, http://b",
        "TIERSTORE_DISKS": '[{path = "/d", tier = "ssd", capacity = "1GB"}]',
    }
    file = toml_file(
        tmp_path, '[door]\nwait = "250ms"\nrate = "50MiB/s"\nis_open = true\npeers = ["http://a", "http://b"]\n'
        '[[disks]]\npath = "/d"\ntier = "ssd"\ncapacity = "1GB"\n',
    )  # fmt: skip
    expected = Settings(
        door=Door(port=7480, wait=0.25, rate=50 << 20, is_open=True, peers=("http://a", "http://b")),
        disks=(Disk(path="/d", tier="ssd", capacity=10**9),),
    )
    assert load(Settings, environ=environ) == load(Settings, file=file) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[door]\nprot = 1", "door.prot is not a setting; did you mean 'port'"),
        ("[dor]\nport = 1", "did you mean 'door'"),
        ("[[disks]]\npath = 'x'\ntear = 'ssd'", "number 1: tear is not a setting; did you mean 'tier'"),
        ("[[disks]]\ntier = 'ssd'", "number 1: 'path' is missing"),
        ("[[disks]]\npath = 'x'\ntier = 'tape'", "'tape' is none of 'ssd', 'hdd'"),
        ("[disks]\npath = 'x'", r"\[\[disks\]\]"),
        ("[door]\nport = 'x'", "door.port: 'x' is not a whole number"),
        ("[door]\nport = 1.5", "not a whole number"),
        ("[door]\nport = true", "not a whole number"),
        ("[door]\nwait = '3 parsec'", "door.wait: .* is not a time"),
        ("[door]\nis_open = 'maybe'", "neither yes nor no"),
        ("[door]\npeers = 5", "not a list"),
        ("[door]\nport = 13", "unlucky"),
        ("door = 3", r"must be a section: \[door\]"),
        ("[door", "is not TOML"),
        ("[door]\nkey_file = '/does/not/exist'", "door.key_file: /does/not/exist cannot be read"),
    ],
)
def test_wrong_settings_name_the_setting_its_source_and_the_way_out(tmp_path: Path, text: str, message: str) -> None:
    """An operator mends what the line says; a silently ignored typo costs a night."""
    file = toml_file(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(Settings, file=file)
    assert str(file) in caught.value.detail or "unlucky" in message


def test_unknown_environment_settings_are_errors_but_other_variables_are_not() -> None:
    """TIERSTORE_TOKEN is for clients; sections of other daemons may share an environment."""
    assert load(Settings, environ={"TIERSTORE_TOKEN": "x", "TIERSTORE_ENDPOINT": "y", "HOME": "/"}) == Settings()
    with pytest.raises(ConfigError, match=r"TIERSTORE_DOOR__PROT.*'port'"):
        load(Settings, environ={"TIERSTORE_DOOR__PROT": "1"})
    with pytest.raises(ConfigError, match="TIERSTORE_OTHER__PORT"):
        load(Settings, environ={"TIERSTORE_OTHER__PORT": "1"})
    assert load(Settings, environ={"TIERSTORE_OTHER__PORT": "1"}, elsewhere=frozenset({"other"})) == Settings()


def test_secrets_come_from_files_and_are_never_shown(tmp_path: Path) -> None:
    """Process lists, logs and `config show` must not hold them."""
    (tmp_path / "key").write_text("hunter2\n")
    file = toml_file(tmp_path, f"[door]\nkey_file = '{tmp_path}/key'")
    settings = load(Settings, file=file)
    assert settings.door.key == "hunter2"
    assert "hunter2" not in repr(settings) and "hunter2" not in str(as_tree(settings))
    assert as_tree(settings, reveal=True)["door"]["key"] == "hunter2"
    assert load(Settings, file=file, environ={"TIERSTORE_DOOR__KEY": "other"}).door.key == "other", "later source wins"
    with pytest.raises(ConfigError) as caught:
        load(Settings, flags={"door.key": 5})
    assert "5" not in caught.value.detail.removeprefix("--door.key")


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    """Not a traceback."""
    with pytest.raises(ConfigError, match=r"nothing\.toml does not exist"):
        load(Settings, file=tmp_path / "nothing.toml")


def test_every_setting_is_described_with_its_environment_variable() -> None:
    """The reference pages are made of this."""
    known = {entry.path: entry for entry in describe(Settings)}
    assert known["door.wait"].kind == "time" and known["door.wait"].environment == "TIERSTORE_DOOR__WAIT"
    assert known["disks.tier"].kind == "ssd | hdd" and known["disks.tier"].environment == "TIERSTORE_DISKS"
    assert known["door.key"].is_secret and known["door.port"].default == 7480
    with pytest.raises(TypeError, match="description"):
        setting(1)


def test_the_shared_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--set, --fd, --show-config and --check-config mean the same for every daemon."""

    options = settings_parser("d", "a daemon").parse_args(
        ["--fd", "7", "--set", "door.wait=5s", "--set", "door.key=abc"]
    )
    settings = settings_of(Daemon, options, {})
    assert settings.listen.fd == 7 and settings.door.wait == 5.0
    options.show_config = True
    with pytest.raises(SystemExit) as done:
        settings_of(Daemon, options, {})
    shown = tomllib.loads(capsys.readouterr().out)
    assert done.value.code == 0 and shown["door"]["wait"] == 5.0 and shown["door"]["key"] == "********"
    with pytest.raises(SystemExit) as failed:
        parse(Daemon, "d", "a daemon", ["--set", "door.prot=1"])
    assert failed.value.code == 2 and "did you mean 'port'" in capsys.readouterr().err


_plain = st.one_of(
    st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)  # fmt: skip
_names = st.from_regex(r"[a-z_][a-z0-9_]{0,10}", fullmatch=True)
_table = st.dictionaries(_names, st.one_of(_plain, st.lists(_plain, max_size=3)), max_size=4)


@given(st.dictionaries(_names, st.one_of(_table, st.lists(_table, min_size=1, max_size=2)), max_size=4))
def test_what_is_written_as_toml_reads_back_the_same(tree: dict[str, Any]) -> None:
    """The supervisor writes the settings files of its children; any path may be in them."""
    assert tomllib.loads(toml.dumps(tree)) == tree
