"""What s3-tests is told of a cluster is what the cluster is told of s3-tests."""

from __future__ import annotations

import configparser
from pathlib import Path

from metadata.config import Settings
from tests.kit import s3tests
from tests.kit.cluster import Cluster
from tierstore.config.load import load


def test_the_suites_users_are_the_clusters(tmp_path: Path) -> None:
    """A key that differs by a letter fails 800 cases with one cause."""
    users = load(Settings, environ=s3tests.settings(), elsewhere=frozenset({"s3"})).users
    cluster = Cluster(tmp_path, [], {}, 7000, ready={"sites": [{"gateway": "http://127.0.0.1:7080"}]})
    parser = configparser.RawConfigParser()
    parser.read_string(s3tests.configuration(cluster))
    shown = {(parser[s]["user_id"], parser[s]["access_key"], parser[s]["secret_key"]) for s, *_ in s3tests.USERS}
    assert shown == {(user.name, user.access_key, user.secret_key) for user in users}
    assert (parser["DEFAULT"]["host"], parser["DEFAULT"]["port"]) == ("127.0.0.1", "7080")
