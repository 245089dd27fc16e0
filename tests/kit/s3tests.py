"""A cluster for Ceph's s3-tests, and the configuration file by which that suite finds it.

    python -m tests.kit.s3tests DIR        starts a cluster in DIR, writes DIR/s3tests.conf, runs until Ctrl-C
    S3TEST_CONF=DIR/s3tests.conf pytest s3tests/functional/test_s3.py -m 'not fails_on_aws'       in a checkout of it

Three users have keys by configuration and may make buckets; a day of a lifecycle rule lasts `DAY_SECONDS`, which the
suite must know as lc_debug_interval.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

from tests.kit.cluster import Cluster, cluster

DAY_SECONDS = 10
#: (section, user, access key, secret key)
USERS = (
    ("s3 main", "main", "S3TESTSMAIN0000001", "s3-tests-main-secret-of-no-other-use"),
    ("s3 alt", "alt", "S3TESTSALT00000001", "s3-tests-alt-secret-of-no-other-use"),
    ("s3 tenant", "tenant", "S3TESTSTENANT00001", "s3-tests-tenant-secret-of-no-other-use"),
)
_POLICY = json.dumps({"Statement": [
    {"Effect": "Allow", "Action": ["s3:CreateBucket", "s3:ListAllMyBuckets"], "Resource": "*"},
]})  # fmt: skip


def settings() -> dict[str, str]:
    """The environment of a cluster that the suite can drive."""
    users = ", ".join(
        f'{{name = "{user}", access_key = "{access}", secret_key = "{secret}", policy = \'{_POLICY}\'}}'
        for _, user, access, secret in USERS
    )
    return {
        "TIERSTORE_USERS": f"[{users}]", "TIERSTORE_DUTIES__LIFECYCLE_DAY": f"{DAY_SECONDS}s",
        "TIERSTORE_DUTIES__LIFECYCLE_INTERVAL": "2s", "TIERSTORE_S3__CUSTOMER_KEYS_OVER_HTTP": "true",
    }  # fmt: skip


def configuration(running: Cluster) -> str:
    """The text of s3tests.conf."""
    place = urlsplit(running.gateway)
    lines = [
        "[DEFAULT]", f"host = {place.hostname}", f"port = {place.port}", "is_secure = False", "ssl_verify = False", "",
        "[fixtures]", "bucket prefix = tierstore-{random}-", "",
    ]  # fmt: skip
    for section, user, access, secret in USERS:
        lines += [
            f"[{section}]", f"display_name = {user}", f"user_id = {user}", f"email = {user}@example.com",
            "api_name = default", f"access_key = {access}", f"secret_key = {secret}",
        ]  # fmt: skip
        if section == "s3 main":
            lines += [f"lc_debug_interval = {DAY_SECONDS}", "kms_keyid = up", "kms_keyid2 = up"]
        if section == "s3 tenant":
            lines.append("tenant = default")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    directory = Path(sys.argv[1])
    with cluster(directory / "cluster", env=settings()) as running:
        path = directory / "s3tests.conf"
        path.write_text(configuration(running))
        print(f"S3TEST_CONF={path}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
