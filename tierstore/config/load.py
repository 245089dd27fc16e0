"""Settings from flags, environment, a TOML file and defaults, checked against a frozen dataclass.

A daemon's settings are one dataclass whose fields are sections (dataclasses) or lists of tables (tuples of
dataclasses). Nothing is kept here; loading is one function, and what it accepts is exactly what `describe` lists, so
the reference pages cannot lie. Invariant: a value from outside is either converted to its field's type or refused with
a ConfigError that names the setting, where it came from, and the nearest right name.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Store:
        "How chunks are kept."
        segment_bytes: Size = setting(1 << 30, "a segment is closed at this size")
        password: str = secret("", "also as password_file")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Settings:
        store: Store = section(Store)
        devices: tuple[Device, ...] = tables(Device, "one per directory or disk")

    settings = load(Settings, file=Path("x.toml"), flags={"store.segment_bytes": "1GiB"}, environ=os.environ)
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from tierstore.errors import ConfigError
from tierstore.units import parse_rate, parse_seconds, parse_size

T = TypeVar("T")

#: An int of bytes, written "8MiB" or 8388608.
Size = Annotated[int, "size"]
#: A float of seconds, written "250ms", "1h" or 10.
Seconds = Annotated[float, "time"]
#: An int of bytes per second, written "50MiB/s".
Rate = Annotated[int, "rate"]

ENVIRONMENT_PREFIX: Final = "TIERSTORE_"
_MASK: Final = "********"


def setting(default: Any = MISSING, description: str = "") -> Any:
    """A field with its description. Without a default it is required (only in tables)."""
    if not description:
        raise TypeError("a setting needs a description")
    return field(default=default, metadata={"description": description})


def secret(default: str, description: str) -> Any:
    """A string that is never shown; may also be given as NAME_file, the path of a file that holds it."""
    return field(default=default, repr=False, metadata={"description": description, "secret": True})


def section(kind: type[T], **defaults: Any) -> T:
    """A [section]; `defaults` replace those of the shared dataclass (the port of this daemon, say)."""
    return field(default_factory=lambda: kind(**defaults))


def tables(kind: type[T], description: str) -> tuple[T, ...]:
    """A list of tables, [[name]] in the file."""
    return typing.cast("tuple[T, ...]", field(default=(), metadata={"description": description, "tables": kind}))


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as the loader knows it. `section` is "" never; `table` is True inside a [[section]]."""

    section: str
    name: str
    kind: str                 # text | number | integer | size | time | rate | yes/no | list | "a | b | c"
    default: object           # MISSING when it must be given
    description: str
    is_secret: bool
    in_table: bool
    hint: Any = dataclasses.field(repr=False, compare=False, default=None)

    @property
    def path(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def environment(self) -> str:
        """The environment variable that sets it; that of the whole list for members of tables."""
        if self.in_table:
            return f"{ENVIRONMENT_PREFIX}{self.section.upper()}"
        return f"{ENVIRONMENT_PREFIX}{self.section.upper()}__{self.name.upper()}"


def describe(kind: type[Any]) -> list[Setting]:
    """Every setting of a settings dataclass, in the order of its fields."""
    return list(_describe(kind))


def _describe(kind: type[Any]) -> Iterator[Setting]:
    hints = typing.get_type_hints(kind, include_extras=True)
    for part in fields(kind):
        table = part.metadata.get("tables")
        if table is not None:
            yield from _members(part.name, table, None)
        elif is_dataclass(hints[part.name]):
            assert part.default_factory is not MISSING, f"{kind.__name__}.{part.name} is not a section()"
            yield from _members(part.name, hints[part.name], part.default_factory())
        else:
            raise TypeError(f"{kind.__name__}.{part.name} is neither a section() nor tables()")


def _members(section_name: str, kind: type[Any], defaults: object | None) -> Iterator[Setting]:
    hints = typing.get_type_hints(kind, include_extras=True)
    for member in fields(kind):
        default = getattr(defaults, member.name) if defaults is not None else member.default
        yield Setting(
            section=section_name,
            name=member.name,
            kind=_kind(hints[member.name]),
            default=default,
            description=member.metadata.get("description", ""),
            is_secret=bool(member.metadata.get("secret")),
            in_table=defaults is None,
            hint=hints[member.name],
        )


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) is Annotated:
        return str(hint.__metadata__[0])
    if typing.get_origin(hint) is Literal:
        return " | ".join(str(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "list"
    return {str: "text", int: "integer", float: "number", bool: "yes/no"}[hint]


@dataclass(frozen=True, slots=True)
class _Given:
    value: object
    source: str               # for messages: "metadata.toml", "TIERSTORE_LISTEN__PORT", "--listen.port"


def load(
    kind: type[T],
    *,
    file: Path | None = None,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    elsewhere: frozenset[str] = frozenset(),
) -> T:
    """The settings. flags: "section.name" -> value (text is converted); None values are left out.

    elsewhere: sections of other daemons, whose environment variables are passed over: one environment may serve all.
    Raises ConfigError; reads `file` and the files named by *_file settings, nothing else."""
    known = describe(kind)
    given: dict[tuple[str, str], _Given] = {}
    listed: dict[str, tuple[list[dict[str, object]], str]] = {}
    table_names = {entry.section for entry in known if entry.in_table}
    section_names = list(dict.fromkeys(part.name for part in fields(kind)))  # type: ignore[arg-type]

    def note(section_name: str, name: str, value: object, source: str) -> None:
        names = [entry.name for entry in known if entry.section == section_name]
        names += [f"{entry.name}_file" for entry in known if entry.section == section_name and entry.is_secret]
        if name not in names:
            raise ConfigError(_unknown(source, f"{section_name}.{name}", name, names))
        # A secret and its _file form are one setting: the later source replaces either.
        given.pop((section_name, name.removesuffix("_file") if name.endswith("_file") else f"{name}_file"), None)
        given[section_name, name] = _Given(value, source)

    if file is not None:
        for section_name, members in _read(file).items():
            if section_name not in section_names:
                raise ConfigError(_unknown(str(file), f"[{section_name}]", section_name, section_names))
            if section_name in table_names:
                listed[section_name] = (_table_list(members, section_name, str(file)), str(file))
            elif isinstance(members, dict):
                for name, value in members.items():
                    note(section_name, name, value, str(file))
            else:
                raise ConfigError(f"{file}: {section_name!r} must be a section: [{section_name}]")
    for variable, text in sorted((environ or {}).items()):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        section_name, separator, name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        if not separator:
            if section_name in table_names:
                listed[section_name] = (_inline(text, section_name, variable), variable)
            continue  # TIERSTORE_ENDPOINT, TIERSTORE_TOKEN and the like are not settings
        if section_name not in section_names and section_name in elsewhere:
            continue
        if section_name not in section_names:
            raise ConfigError(_unknown(variable, f"[{section_name}]", section_name, section_names))
        note(section_name, name, text, variable)
    for path, value in (flags or {}).items():
        if value is None:
            continue
        section_name, _, name = path.partition(".")
        if section_name not in section_names:
            raise ConfigError(_unknown(f"--{path}", f"[{section_name}]", section_name, section_names))
        if section_name in table_names:
            listed[section_name] = (_table_list(value, section_name, f"--{path}"), f"--{path}")
        else:
            note(section_name, name, value, f"--{path}")
    return _build(kind, given, listed)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None


def _unknown(source: str, what: str, name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "known here: " + ", ".join(sorted(names))
    return f"{source}: {what} is not a setting; {hint}"


def _inline(text: str, name: str, source: str) -> list[dict[str, object]]:
    try:
        return _table_list(tomllib.loads(f"{name} = {text}")[name], name, source)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f'{source}: write it like [{{path = "/d", tier = "ssd"}}]: {error}') from None


def _table_list(value: object, name: str, source: str) -> list[dict[str, object]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ConfigError(f"{source}: {name!r} must be a list of tables: [[{name}]]")
    return value


def _build(
    kind: type[T], given: Mapping[tuple[str, str], _Given], listed: Mapping[str, tuple[list[dict[str, object]], str]]
) -> T:
    known: dict[str, list[Setting]] = {}
    for entry in describe(kind):
        known.setdefault(entry.section, []).append(entry)
    hints = typing.get_type_hints(kind)
    parts: dict[str, object] = {}
    for part in fields(kind):  # type: ignore[arg-type]
        table = part.metadata.get("tables")
        if table is not None:
            rows, source = listed.get(part.name, ([], ""))
            parts[part.name] = tuple(_row(table, known[part.name], row, source, at) for at, row in enumerate(rows))
            continue
        values = {entry.name: _value(entry, given) for entry in known.get(part.name, [])}
        parts[part.name] = _construct(hints[part.name], values, f"[{part.name}]")
    return _construct(kind, parts, "settings")


def _row(kind: type[T], known: list[Setting], row: dict[str, object], source: str, at: int) -> T:
    where = f"{source}: [[{known[0].section}]] number {at + 1}"
    names = [entry.name for entry in known] + [f"{entry.name}_file" for entry in known if entry.is_secret]
    for name in row:
        if name not in names:
            raise ConfigError(_unknown(where, name, name, names))
    given = {(known[0].section, name): _Given(value, where) for name, value in row.items()}
    values = {entry.name: _value(entry, given, where) for entry in known}
    return _construct(kind, values, where)


def _construct(kind: type[T], values: dict[str, Any], where: str) -> T:
    """A dataclass whose own checks (__post_init__) may raise ConfigError or ValueError."""
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _value(entry: Setting, given: Mapping[tuple[str, str], _Given], where: str = "") -> object:
    found = given.get((entry.section, entry.name))
    if found is not None:
        return _convert(entry, found.value, found.source)
    if entry.is_secret:
        named = given.get((entry.section, f"{entry.name}_file"))
        if named is not None:
            return _secret_file(str(named.value), f"{named.source}: {entry.path}_file")
    if entry.default is MISSING:
        raise ConfigError(f"{where}: {entry.name!r} is missing ({entry.description})")
    return entry.default


def _secret_file(path: str, where: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(f"{where}: {path} cannot be read: {error.strerror}") from None


def _convert(entry: Setting, value: object, source: str) -> object:
    try:
        return _converted(entry.hint, value)
    except (ConfigError, ValueError, TypeError) as error:
        # What the conversion says quotes the value, which a secret's message must not.
        detail = f"its value is not a {entry.kind}" if entry.is_secret else getattr(error, "detail", str(error))
        raise ConfigError(f"{source}: {entry.path}: {detail}") from None


def _converted(hint: Any, value: Any) -> object:
    """value as the field's type, or ConfigError/ValueError. Text is converted, other types must fit."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return {"size": parse_size, "time": parse_seconds, "rate": parse_rate}[hint.__metadata__[0]](value)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{value!r} is none of " + ", ".join(map(repr, typing.get_args(hint))))
        return value
    if origin is tuple:
        parts = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise ConfigError(f"{value!r} is not a list")
        return tuple(_converted(typing.get_args(hint)[0], part) for part in parts)
    if hint is bool:
        if isinstance(value, bool):
            return value
        choice = {"true": True, "yes": True, "on": True, "1": True}.get(str(value).lower())
        if choice is None and str(value).lower() not in {"false", "no", "off", "0"}:
            raise ConfigError(f"{value!r} is neither yes nor no")
        return bool(choice)
    if hint is str:
        if not isinstance(value, str):
            raise ConfigError(f"{value!r} is not a text; put it in quotes")
        return value
    if isinstance(value, bool) or (hint is int and isinstance(value, float)):
        raise ConfigError(f"{value!r} is not a whole number")
    try:
        return int(value) if hint is int else float(value)
    except ValueError:
        raise ConfigError(f"{value!r} is not a {'whole number' if hint is int else 'number'}") from None


def as_tree(settings: Any, *, reveal: bool = False) -> dict[str, Any]:
    """The settings as plain values, section by section; secrets masked unless `reveal`."""
    tree: dict[str, Any] = {}
    for part in fields(settings):
        value = getattr(settings, part.name)
        tree[part.name] = [_plain(row, reveal) for row in value] if isinstance(value, tuple) else _plain(value, reveal)
    return tree


def _plain(value: Any, reveal: bool) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for member in fields(value):
        held = getattr(value, member.name)
        if member.metadata.get("secret") and held and not reveal:
            held = _MASK
        out[member.name] = list(held) if isinstance(held, tuple | types.GeneratorType) else held
    return out
