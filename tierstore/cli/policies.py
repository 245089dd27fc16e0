"""`tierstore admin policy ...`: the tiering policy's versioned documents, checks and what-if.

What a document means is judged by the service, which may know more settings than this release; what it refuses of a
TOML file gets its lines here, because only here they are known.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tierstore.cli.cluster import Endpoint, Http, Json, Profile, Token, find, open_http
from tierstore.cli.output import print_json, print_table, say
from tierstore.cli.picture import save
from tierstore.errors import ConfigError, NotFound, RequestError
from tierstore.policy.document import with_line
from tierstore.policy.parser import parse, parse_toml, refusal

policy = typer.Typer(help="The tiering policy: versioned documents.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="Policy document, TOML or JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Also when a rule asks for more copies than there are servers.")]


def read_policy(path: Path) -> dict[str, Any]:
    """The tree of a policy file. Raises ConfigError; what it means is checked by the service."""
    try:
        text = path.read_text()
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deep for a policy") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} is not a policy: it begins with version = 1 and [[rules]]")
    try:
        json.dumps(tree, allow_nan=False)
    except (TypeError, ValueError):         # a time without quotes, nan: TOML has them, JSON and policies do not
        parse(tree, text=text if path.suffix != ".json" else "")
        raise ConfigError(f"{path} holds a value that JSON cannot") from None
    return tree


@contextmanager
def _with_lines(path: Path) -> Iterator[None]:
    """What the service refuses of a TOML file, with the lines where it stands."""
    try:
        yield
    except RequestError as error:
        problems = error.fields.get("problems")
        if error.code != "bad-policy" or path.suffix == ".json":
            raise
        text = path.read_text()
        if isinstance(problems, list):
            raise refusal(*(with_line(text, str(problem)) for problem in problems)) from None
        parse_toml(text)    # a service that lists no problems: looked for here; raises with the lines
        raise


@policy.command("show")
def policy_show(
    revision: Annotated[int | None, typer.Option(help="An older revision.")] = None,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Print the policy in force, or an older one."""
    from tierstore.policy.document import toml_text

    with open_http(find(endpoint, token, profile)) as http:
        answer = http.get("/v1/admin/policy") if revision is None else _revision(http, revision)
    if as_json:
        print_json(answer)
        return
    say(f"# revision {answer.pop('revision', 0)}")
    say(toml_text(answer).rstrip())


def _revision(http: Http, revision: int) -> dict[str, Any]:
    for row in http.get("/v1/admin/policy/history", limit=1000)["revisions"]:
        if row["revision"] == revision:
            return {**row["policy"], "revision": revision}
    raise NotFound(f"the history has no revision {revision}; see `tierstore admin policy history`")


@policy.command("set")
def policy_set(
    path: File,
    note: Annotated[str, typer.Option(help="Why; stands in the history.")] = "",
    force: Force = False,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Put a policy in force; the one before stays in the history."""
    document = read_policy(path)
    with _with_lines(path), open_http(find(endpoint, token, profile)) as http:
        answer = http.call("PUT", "/v1/admin/policy", params={"note": note, **_forced(force)}, body=document)
    _show(answer, f"in force as revision {answer.get('revision')}", as_json)


@policy.command("check")
def policy_check(
    path: File,
    force: Force = False,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Say whether a policy would be accepted, without putting it in force."""
    document = read_policy(path)
    with _with_lines(path), open_http(find(endpoint, token, profile)) as http:
        answer = http.call("POST", "/v1/admin/policy/check", params=_forced(force), body=document)
    _show(answer or {}, f"{path}: no errors", as_json)


def _show(answer: dict[str, Any], done: str, as_json: bool) -> None:
    """What came of a document, and what in it probably is not meant."""
    if as_json:
        print_json(answer)
        return
    say(done)
    for warning in answer.get("warnings", []):
        say(f"warning: {warning}")


def _forced(force: bool) -> dict[str, str]:
    return {"force": "true"} if force else {}


@policy.command("history")
def policy_history(
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False
) -> None:
    """Who put which revision in force, and when."""
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.get("/v1/admin/policy/history")
    if as_json:
        print_json(answer)
        return
    rows = [[row["revision"], row["at"], row["who"], row["note"]] for row in answer["revisions"]]
    print_table(["revision", "at", "who", "note"], rows) if rows else say("the built-in policy was never changed")


@policy.command("rollback")
def policy_rollback(
    revision: Annotated[int, typer.Argument(help="The revision to put in force again; 0: the built-in policy.")],
    force: Force = False,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Put an older revision in force again, as a new one."""
    with open_http(find(endpoint, token, profile)) as http:
        answer = http.call("POST", "/v1/admin/policy/rollback", params=_forced(force), body={"revision": revision})
    _show(answer, f"revision {revision} is in force again, as {answer.get('revision')}", as_json)


@policy.command("simulate")
def policy_simulate(
    path: File,
    hours: Annotated[int, typer.Option(min=1, max=720, help="How much recorded history to replay.")] = 24,
    trace: Annotated[Path | None, typer.Option(help="Replay this trace (CSV time,key,size,op) here instead.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the curves into this file, .svg or .png.")] = None,
    endpoint: Endpoint = None, token: Token = None, profile: Profile = None, as_json: Json = False,
) -> None:  # fmt: skip
    """What a policy would have done on recorded history, beside the one in force."""
    from tierstore.cli import whatif  # brings numpy: a fifth of a second that no other command needs

    document = read_policy(path)
    with _with_lines(path), open_http(find(endpoint, token, profile)) as http:
        if trace is None:
            answer = http.call("POST", "/v1/admin/policy/simulate", body={"policy": document, "hours": hours})
        else:
            requests = whatif.read_trace(trace).latest(hours)
            tiers, tiering = http.get("/v1/admin/tiers")["tiers"], http.get("/v1/admin/tiering")
            fleet = whatif.fleet_of(tiers, tiering, requests.footprint_bytes)
            answer = whatif.replay_here(requests, http.get("/v1/admin/policy"), document, fleet)
    if picture is not None and "curve" in answer["proposed"]:
        save(picture, answer)
    if as_json:
        print_json(answer)
        return
    whatif.show(answer)
    if picture is not None:
        say(f"the curves are in {picture}")
