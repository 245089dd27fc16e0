"""docker-compose.yml and Dockerfile say what the code can do. No Docker engine is needed: they are read, not run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import metadata.config
import objectd.config
import tierstore.gateway.config
from tierstore.cli.main import app
from tierstore.config.load import load

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
KINDS: dict[str, type[Any]] = {
    "metadata": metadata.config.Settings,
    "objectd": objectd.config.ObjectdConfig,
    "gateway": tierstore.gateway.config.GatewayConfig,
}
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


def settings_of(service: dict[str, Any], tmp_path: Path) -> Any:
    """What the daemon would run with; secret files are put where the container would have them."""
    environ = {}
    for name, value in service["environment"].items():
        path = str(value)
        if name.endswith("_FILE"):
            assert path.removeprefix("/run/secrets/") in service["secrets"], f"{name} names a secret it does not get"
            path = str(tmp_path / "secret")
            Path(path).write_text("s3cret")
        environ[name] = path
    return load(KINDS[service["command"][0]], environ=environ)


@pytest.mark.parametrize("name", OURS)
def test_every_command_exists_and_every_setting_is_accepted(name: str, tmp_path: Path) -> None:
    """A typo in an environment key would otherwise show itself on somebody's first start."""
    service = OURS[name]
    command: Any = typer.main.get_command(app)
    for word in service["command"]:
        command = command.commands[word]
    settings = settings_of(service, tmp_path)
    assert settings.auth.join_token == "s3cret"
    assert settings.listen.url == service["environment"]["TIERSTORE_LISTEN__ADVERTISE"]
    assert settings.listen.url == f"http://{name}:{settings.listen.port}", "others reach it by its service name"


@pytest.mark.parametrize("name", OURS)
def test_every_port_health_check_and_dependency_is_real(name: str, tmp_path: Path) -> None:
    """Health checks that ask the wrong port restart healthy daemons for ever."""
    service = OURS[name]
    port = settings_of(service, tmp_path).listen.port
    exposed = (ROOT / "Dockerfile").read_text()
    assert str(port) in re.findall(r"\d+", next(line for line in exposed.splitlines() if line.startswith("EXPOSE")))
    assert f"http://127.0.0.1:{port}/-/readyz" in service["healthcheck"]["test"][-1]
    for mapping in service.get("ports", []):
        assert mapping.split(":")[1] == str(port)
    for other, how in service.get("depends_on", {}).items():
        assert other in SERVICES and how["condition"] == "service_healthy" and "healthcheck" in SERVICES[other]
        assert set(SERVICES[other].get("profiles", [])) <= set(service.get("profiles", [])), "or it would never start"


@pytest.mark.parametrize("name", OURS)
def test_every_path_lies_on_a_volume_and_every_peer_is_a_service(name: str, tmp_path: Path) -> None:
    """A path beside the volumes would lose the data with the container."""
    service = OURS[name]
    settings = settings_of(service, tmp_path)
    mounts = [volume.split(":")[1] for volume in service["volumes"]]
    for volume in service["volumes"]:
        assert volume.split(":")[0] in COMPOSE["volumes"]
    paths = [device.path for device in getattr(settings, "devices", ())]
    paths.append(settings.catalog.data if hasattr(settings, "catalog") else settings.membership.data)
    for path in paths:
        assert any(path == mount or path.startswith(mount + "/") for mount in mounts), path
    for url in getattr(getattr(settings, "membership", None), "metadata", ()):
        host, _, port = url.removeprefix("http://").partition(":")
        assert SERVICES[host]["environment"]["TIERSTORE_LISTEN__PORT"] == port
        assert SERVICES[host].get("profiles") == service.get("profiles"), "a daemon joins its own site"


def test_a_site_is_n_plus_one_with_two_tiers_on_each_server(tmp_path: Path) -> None:
    """The promise needs copies + 1 servers."""
    for profile in (None, ["site2"]):
        site = [service for service in OURS.values() if service.get("profiles") == profile]
        servers = [settings_of(service, tmp_path) for service in site if service["command"][0] == "objectd"]
        (meta,) = (settings_of(service, tmp_path) for service in site if service["command"][0] == "metadata")
        assert len(servers) >= meta.placement.copies + 1
        assert len({server.membership.name for server in servers}) == len(servers)
        assert all({device.tier for device in server.devices} == {"ssd", "hdd"} for server in servers)
        assert sum(service["command"][0] == "gateway" for service in site) == 1
    assert settings_of(OURS["metadata"], tmp_path).catalog.url == "s3cret", "the first site's catalog is PostgreSQL"


def test_containers_are_not_root_and_no_secret_stands_in_the_file() -> None:
    """What is in the repository is public."""
    users = re.findall(r"^USER (\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    assert users and users[-1] not in ("root", "0")
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}
    assert (
        "/secrets/" in (ROOT / ".gitignore").read_text().split() and "secrets" in (ROOT / ".dockerignore").read_text()
    )
    for service in SERVICES.values():
        for key in service.get("environment", {}):
            assert not re.search(r"(SECRET_KEY|TOKEN|PASSWORD|CATALOG__URL)$", key), f"{key} must come from a file"


def test_the_image_holds_what_the_wheel_needs() -> None:
    """A package that is not copied fails at the first import."""
    text = (ROOT / "Dockerfile").read_text()
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    for path in [*packages, "pyproject.toml", "README.md", "requirements-dev.lock"]:
        assert (ROOT / path).exists() and re.search(rf"^COPY .*\b{re.escape(path)}\b", text, re.M), path
