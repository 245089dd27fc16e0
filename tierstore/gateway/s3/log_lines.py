"""One line of an access log, in AWS's format: 26 fields, "-" where there is nothing to say. Pure.

Source: Amazon S3 User Guide, "Amazon S3 server access log format". Invariant: a line is one line and its fields stay
apart, whatever a client sent: control characters and quotes are percent-encoded, and so are keys.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

from tierstore.gateway.s3.request import Call, Deleted
from tierstore.wire.names import BucketView

_UNSAFE = re.compile(r'[^\x21-\x7e]|"')
_UNSAFE_IN_QUOTES = re.compile(r'[^\x20-\x7e]|"')
_SECRET = re.compile(rb"(?<=[?&]X-Amz-Signature=)[^&]*")
_TEXT_MAX: Final = 2048
#: Parameter of the query -> what AWS calls the resource that it names; the first that is there counts.
_RESOURCES: Final = {
    "acl": "ACL", "cors": "CORS", "delete": "MULTI_OBJECT_DELETE", "encryption": "ENCRYPTION",
    "legal-hold": "LEGAL_HOLD", "lifecycle": "LIFECYCLE", "location": "LOCATION", "logging": "LOGGING_STATUS",
    "notification": "NOTIFICATION", "object-lock": "OBJECT_LOCK_CONFIGURATION",
    "ownershipControls": "OWNERSHIP_CONTROLS", "policy": "BUCKETPOLICY", "policyStatus": "POLICY_STATUS",
    "publicAccessBlock": "PUBLIC_ACCESS_BLOCK", "replication": "REPLICATION", "requestPayment": "REQUEST_PAYMENT",
    "retention": "OBJECT_LOCK_RETENTION", "tagging": "TAGGING", "attributes": "OBJECT_ATTRIBUTES",
    "uploads": "UPLOADS", "versioning": "VERSIONING", "versions": "BUCKETVERSIONS", "website": "WEBSITE",
}  # fmt: skip


def operation_of(call: Call) -> str:
    """REST.METHOD.RESOURCE."""
    is_copy = b"x-amz-copy-source" in call.header_names
    resource = next((shown for name, shown in _RESOURCES.items() if name in call.names), "")
    if not resource and "uploadId" in call.names:
        resource = "PART" if "partNumber" in call.names else "UPLOAD"
    if not resource:
        resource = "OBJECT" if call.key else "BUCKET"
        if is_copy and call.method == "PUT" and call.key:
            return "REST.COPY.OBJECT"
    return f"REST.{'COPY' if is_copy and resource == 'PART' else call.method}.{resource}"


def line_of(call: Call, bucket: BucketView, *, ended_at_ms: int, of: Deleted | None = None) -> str:
    """The line of a call that was answered, with its end; of: of one of the keys that it deleted."""
    answer, who = call.answer, call.principal
    operation, key, request = operation_of(call), call.key, f'"{_request_line(call)}"'
    status, code, length = answer.status, answer.code, answer.length
    version = call.query.get("versionId", "")
    if of is not None:
        operation, key, request = "BATCH.DELETE.OBJECT", of.key, '"-"'
        status, code, length, version = of.status, of.code, 0, of.version
    took = max(ended_at_ms - call.at_ms, 0)
    agent, referrer, host = (call.header(name) for name in (b"user-agent", b"referer", b"host"))
    signed = "-" if call.claim is None else "QueryString" if call.claim.is_presigned else "AuthHeader"
    began = datetime.fromtimestamp(call.at_ms / 1000, UTC)
    user = _plain(who.user) if who.access else "-"
    fields = (
        bucket.owner or "-", bucket.name, began.strftime("[%d/%b/%Y:%H:%M:%S %z]"), _plain(call.exchange.peer), user,
        call.exchange.request_id, operation, quote(key, safe="/-._~") if key else "-", request, str(status),
        code or "-", str(length) if length else "-",
        str(answer.object_bytes) if answer.object_bytes >= 0 else "-", str(took), "-",
        _quoted(referrer), _quoted(agent), _plain(version), "-",
        "SigV4" if call.claim is not None else "-", "-", signed, _plain(host or ""), "-", "-",
        "Yes" if answer.by_list else "-",
    )  # fmt: skip
    return " ".join(fields) + "\n"


def _request_line(call: Call) -> str:
    """As it came, but for a signature: whoever reads the log must not be able to send a presigned request again."""
    target = _SECRET.sub(b"REDACTED", call.exchange.target).decode("latin-1")
    return _UNSAFE_IN_QUOTES.sub(_encoded, f"{call.method} {target} HTTP/1.1")


def _plain(text: str) -> str:
    return _UNSAFE.sub(_encoded, text[:_TEXT_MAX]) or "-"


def _quoted(text: str | None) -> str:
    return '"-"' if not text else f'"{_UNSAFE_IN_QUOTES.sub(_encoded, text[:_TEXT_MAX])}"'


def _encoded(found: re.Match[str]) -> str:
    return quote(found[0].encode("utf-8", "surrogatepass"), safe="")
