"""CORS: rules of a bucket, preflight answers and the lines that answers carry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from tierstore.auth.policy_patterns import matches
from tierstore.gateway.s3 import documents
from tierstore.gateway.s3.documents import Node
from tierstore.gateway.s3.errors import S3Error
from tierstore.gateway.s3.request import Call
from tierstore.wire.names import BucketView

CORS: Final = "s3.cors"
RULES_MAX: Final = 100
_METHODS: Final = frozenset({"GET", "PUT", "HEAD", "POST", "DELETE"})
_NAMES: Final = ("ID", "AllowedHeader", "AllowedMethod", "AllowedOrigin", "ExposeHeader", "MaxAgeSeconds")
Rule = dict[str, list[str]]


def parse_rules(root: Node) -> list[Rule]:
    """Raises S3Error(MalformedXML, InvalidRequest)."""
    rules = []
    for node in root.all("CORSRule"):
        rule = {name: [child.value for child in node.all(name)] for name in _NAMES}
        if not rule["AllowedMethod"] or not rule["AllowedOrigin"] or not _METHODS.issuperset(rule["AllowedMethod"]):
            raise S3Error("InvalidRequest", "Found unsupported HTTP method in CORS config, or a rule without origins.")
        if any(text.count("*") > 1 for text in rule["AllowedOrigin"] + rule["AllowedHeader"]):
            raise S3Error("InvalidRequest", "AllowedOrigin and AllowedHeader can not have more than one wildcard.")
        if any(not v.isdecimal() or len(v) > 9 for v in rule["MaxAgeSeconds"]) or len(rule["MaxAgeSeconds"]) > 1:
            raise S3Error("MalformedXML")
        if any("\r" in v or "\n" in v for values in rule.values() for v in values):
            raise S3Error("MalformedXML")
        rules.append(rule)
    if not 1 <= len(rules) <= RULES_MAX:
        raise S3Error("MalformedXML")
    return rules


@lru_cache(maxsize=512)
def _rules(text: str) -> list[Rule]:
    return parse_rules(documents.parse(text.encode(), "CORSConfiguration"))


def lines_of(call: Call, bucket: BucketView, headers: Sequence[str] = ()) -> bytes | None:
    """The lines for a request from another origin; None when no rule allows it. headers: those that a preflight asks
    for. A request that names a method (Access-Control-Request-Method) is judged by that one, as at AWS."""
    origin, text = call.header(b"origin"), bucket.config.get(CORS)
    method = call.header(b"access-control-request-method") or call.method
    if origin is None or text is None:
        return None
    for rule in _rules(text):
        allowed = next((pattern for pattern in rule["AllowedOrigin"] if matches(pattern, origin)), None)
        if allowed is None or method not in rule["AllowedMethod"]:
            continue
        if not all(any(matches(p.lower(), h) for p in rule["AllowedHeader"]) for h in headers):
            continue
        shown = "*" if allowed == "*" else origin
        lines = [f"access-control-allow-origin: {shown}",
                 f"access-control-allow-methods: {', '.join(rule['AllowedMethod'])}",
                 "vary: Origin, Access-Control-Request-Headers, Access-Control-Request-Method"]  # fmt: skip
        if shown != "*":
            lines.append("access-control-allow-credentials: true")
        if headers:
            lines.append(f"access-control-allow-headers: {', '.join(headers)}")
        if rule["ExposeHeader"]:
            lines.append(f"access-control-expose-headers: {', '.join(rule['ExposeHeader'])}")
        if rule["MaxAgeSeconds"]:
            lines.append(f"access-control-max-age: {rule['MaxAgeSeconds'][0]}")
        return ("\r\n".join(lines) + "\r\n").encode()
    return None


def preflight(call: Call, bucket: BucketView) -> None:
    """OPTIONS. Raises S3Error(AccessForbidden)."""
    method = call.header(b"access-control-request-method")
    if call.header(b"origin") is None:
        raise S3Error("BadRequest", "Insufficient information. Origin request header needed.")
    if method not in _METHODS:
        raise S3Error("BadRequest", f"Invalid Access-Control-Request-Method: {str(method)[:20]}")
    asked = call.header(b"access-control-request-headers") or ""
    headers = [name.strip().lower() for name in asked.split(",") if name.strip()]
    lines = lines_of(call, bucket, headers)
    if lines is None:
        raise S3Error("AccessForbidden", "CORSResponse: This CORS request is not allowed. This is usually because the "
                      "evalution of Origin, request method / Access-Control-Request-Method or "
                      "Access-Control-Request-Headers are not whitelisted by the CORS spec.", 403)  # fmt: skip
    call.reply(200, b"", lines)
