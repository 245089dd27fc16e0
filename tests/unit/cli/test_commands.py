"""The command line without a cluster: how it finds one, how it prints, how it ends."""

from __future__ import annotations

import contextlib
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import PIL.Image
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from tierstore.cli import admin, answers, cluster, columns, heat, main, objects, picture, policies, transfer
from tierstore.errors import ConfigError, ConflictError, NotFound, RequestError, TierstoreError

runner = CliRunner()


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster from the surroundings."""
    for name in ("TIERSTORE_ENDPOINT", "TIERSTORE_TOKEN", "TIERSTORE_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_options_win_over_environment_over_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The published order."""
    profile = tmp_path / "profile.toml"
    profile.write_text('[cluster]\nendpoint = "http://p:1"\ntoken = "tst.p.x"\ndata = "/d"\n')
    assert cluster.find(profile=profile) == cluster.Address("http://p:1", "tst.p.x", "/d")
    monkeypatch.setenv("TIERSTORE_PROFILE", str(profile))
    monkeypatch.setenv("TIERSTORE_ENDPOINT", "http://e:2/")
    assert cluster.find() == cluster.Address("http://e:2", "tst.p.x", "/d")
    assert cluster.find("http://o:3", "tst.o.x").endpoint == "http://o:3"
    default = tmp_path / ".config/tierstore/profile.toml"
    default.parent.mkdir(parents=True)
    default.write_text('[cluster]\nendpoint = "http://d:4"\ntoken = "tst.d.x"\n')
    monkeypatch.delenv("TIERSTORE_PROFILE")
    monkeypatch.delenv("TIERSTORE_ENDPOINT")
    assert cluster.find().endpoint == "http://d:4"


def test_no_cluster_wrong_endpoint_and_missing_profile_say_what_to_do(tmp_path: Path) -> None:
    """The first error everybody meets."""
    with pytest.raises(ConfigError, match="TIERSTORE_ENDPOINT"):
        cluster.find()
    with pytest.raises(ConfigError, match="Set TIERSTORE_TOKEN"):      # "cannot be reached; is the cluster up?" before
        cluster.find("http://127.0.0.1:7480")
    for token in ("tst.a\nb.c", "tst.ä.b"):      # the second one was a traceback
        with pytest.raises(ConfigError, match="copy it again"):
            cluster.find("http://127.0.0.1:7480", token)
    assert cluster.find("http://127.0.0.1:7480", "tst.a.b\n").token == "tst.a.b"
    with pytest.raises(ConfigError, match="write it like http://"):
        cluster.find("localhost:7480")
    with pytest.raises(ConfigError, match="does not exist"):
        cluster.find(profile=tmp_path / "none.toml")
    assert "tst.a.secret" not in repr(cluster.find("http://x:1", "tst.a.secret"))


@pytest.mark.parametrize("text", ["photos", "s3://photos/x", "ts://P/x", "ts://v1/x", "ts:///x"])
def test_what_is_not_a_place_in_the_store_is_refused(text: str) -> None:
    """A typo must not become a local file."""
    with pytest.raises(RequestError):
        cluster.parse_place(text)


def test_places_are_buckets_with_keys() -> None:
    """Keys may hold anything, also further slashes."""
    assert cluster.parse_place("ts://photos/a/b c/ä") == cluster.Place("photos", "a/b c/ä")
    assert str(cluster.Place("photos", "a/b")) == "ts://photos/a/b"
    with pytest.raises(RequestError, match="add a key"):
        cluster.parse_place("ts://photos", needs_key=True)
    assert objects.below(cluster.Place("b", "dir/"), "f") == cluster.Place("b", "dir/f")
    assert objects.below(cluster.Place("b"), "f") == cluster.Place("b", "f")
    assert objects.below(cluster.Place("b", "name"), "f") == cluster.Place("b", "name")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", "."])
def test_a_key_cannot_leave_the_directory_that_is_copied_to(name: str, tmp_path: Path) -> None:
    """Somebody else may have chosen the keys."""
    with pytest.raises(RequestError, match="cannot be a file name"):
        transfer._safe(tmp_path, name)


def test_a_tree_is_its_regular_files_with_links_left_out(tmp_path: Path) -> None:
    """A link could point out of the tree, or round in circles."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/f").write_text("x")
    (tmp_path / "g").write_text("y")
    (tmp_path / "a/link").symlink_to(tmp_path / "g")
    (tmp_path / "a/loop").symlink_to(tmp_path / "a")
    assert [name for _, name in transfer._tree(tmp_path)] == ["g", "a/b/f"]


def test_a_local_file_that_is_not_there_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`cp nothing ts://b/` printed a traceback through three task groups."""
    missing = FileNotFoundError(2, "No such file or directory", "nothing")
    for error in (missing, ExceptionGroup("side by side", [ExceptionGroup("deeper", [missing])])):
        monkeypatch.setattr(main, "app", Mock(side_effect=error))
        with pytest.raises(SystemExit) as caught:
            main.run()
        assert caught.value.code == 3
        assert capsys.readouterr().err == "tierstore: nothing: No such file or directory\n"


def test_values_are_shown_with_the_unit_of_their_name() -> None:
    """One rule in place of a layout per command."""
    assert answers.cell("free_bytes", 1536) == "1.5 KiB" and answers.cell("oldest_seconds", 75.0) == "1 min 15 s"
    assert answers.cell("rate_bytes_per_second", 1 << 20) == "1.0 MiB/s" and answers.cell("is_full", False) == "no"
    assert answers.cell("written_bytes_per_day", 3 << 20) == "3.0 MiB"
    following = {"action": "promote", "to_tier": "ssd", "why": "at its next read"}
    assert heat._said("next", following) == "promote to ssd: at its next read"
    assert heat._said("at", 1_800_000_000.5) == "2027-01-15 08:00"
    assert answers.cell("devices", [{"name": "d1"}, {"name": "d2"}]) == "d1, d2" and answers.cell("x", None) == "-"


def test_status_warns_when_the_promise_is_thin_or_broken() -> None:
    """Fewer than copies + 1 servers is the state in which the next fault hurts."""

    def up(*states: str) -> list[dict[str, Any]]:
        return [{"name": f"s{n}", "role": "objectd", "state": s, "devices": []} for n, s in enumerate(states)]

    assert admin.warnings_of(up("up", "up", "up"), 2) == []
    thin = admin.warnings_of(up("up", "up", "dead"), 2)
    assert "s2 is dead" in thin and any("one more lost stops writes" in line for line in thin)
    assert any("not-enough-servers" in line for line in admin.warnings_of(up("up", "dead", "dead"), 2))
    servers = up("up", "up", "up")
    servers[0]["devices"] = [{"path": "/d", "state": "failed"}]
    assert admin.warnings_of(servers, 2) == ["device /d is failed"]


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ({"jobs": [{"id": 1, "kind": "copy"}]}, "copy"),
        ([{"name": "s1", "free_bytes": 1024}], "1.0 KiB"),
        ({"token": "t", "user": "u"}, "user"),
        ({"jobs": []}, "nothing"),
    ],
)
def test_answers_become_tables_or_json(answer: Any, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--json is the service's own answer; the table shows the same fields."""
    answers.show(answer, False)
    assert shown in capsys.readouterr().out
    answers.show(answer, True)
    assert json.loads(capsys.readouterr().out) == answer


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["ls"], "TIERSTORE_ENDPOINT", 2),
        (["cp", "a", "b"], "must be in the store", 2),
        (["sync", "a", "b"], "sync is between", 2),
        (["mv", "a", "ts://bucket/b"], "use cp", 2),
        (["mb", "ts://NO"], "is not a bucket name", 2),
        (["admin", "keys", "create", "u", "--grant", "x=owner"], "write it like", 2),
        (["admin", "policy", "set", "/no/such.toml"], "does not exist", 2),
        (["admin", "status", "--endpoint", "http://127.0.0.1:1", "--token", "tst.a.b"], "is the cluster up?", 6),
        (["admin", "status", "--endpoint", "http://127.0.0.1:1"], "Set TIERSTORE_TOKEN", 2),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(words: list[str], message: str, code: int) -> None:
    """Scripts match on exit codes, people read the line; nobody wants a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "tierstore.cli.main", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""


def test_the_first_reason_is_found_in_a_group_of_errors() -> None:
    """Work done side by side fails as a group; the exit code is that of the reason."""
    group = BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [NotFound("gone"), ConflictError("no")])])
    found = main._first(group)
    assert isinstance(found, NotFound)
    assert main._first(BaseExceptionGroup("", [ValueError()])) is None


def test_every_command_of_the_contract_is_there() -> None:
    """Scripts of others depend on the names."""
    for words in (
        "up",
        "metadata serve", "metadata rebuild", "metadata backup", "objectd serve", "gateway serve",
        "mb", "rb", "ls", "cp",
        "mv", "rm", "cat", "stat", "sync", "bench", "config show", "config check", "admin status", "admin servers",
        "admin drain", "admin undrain", "admin roll", "admin tiers", "admin heat", "admin explain", "admin policy show",
        "admin policy set", "admin policy check", "admin policy history", "admin policy rollback",
        "admin policy simulate",
        "admin jobs", "admin scrub", "admin repair", "admin keys list", "admin keys create", "admin keys delete",
    ):  # fmt: skip
        result = runner.invoke(main.app, [*words.split(), "--help"])
        assert result.exit_code == 0 and "Usage" in result.output, words


ROWS = [
    {"name": "bkt/häß,lich", "heat_per_hour": 1.5, "bytes": 7, "tier": "ssd"},
    {"name": "bkt/b", "heat_per_hour": 0.25, "bytes": 8, "tier": "hdd"},
]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_heat_goes_into_a_file_that_other_programs_read(ending: str, tmp_path: Path) -> None:
    """People take heat to their own tools; names with commas and umlauts must arrive."""
    path = tmp_path / f"heat{ending}"
    columns.save(path, ROWS, ("name", "heat_per_hour", "bytes", "tier"))
    if ending == ".csv":
        with path.open(encoding="utf-8") as file:
            found = [
                {"name": r["name"], "heat_per_hour": float(r["heat_per_hour"]), "bytes": int(r["bytes"]),
                 "tier": r["tier"]} for r in csv.DictReader(file)
            ]  # fmt: skip
    else:
        found = pyarrow.parquet.read_table(path).to_pylist()
    assert found == ROWS
    assert [p.name for p in tmp_path.glob("heat*")] == [path.name], "no unfinished file is left"
    with pytest.raises(ConfigError, match=r"\.csv or \.parquet"):
        columns.save(tmp_path / "heat.xls", ROWS, ("name",))


def test_curves_are_drawn_as_svg_and_png(tmp_path: Path) -> None:
    """A picture that shows nothing, or half of the points, is worse than none."""
    points = [{"fast_bytes": n << 30, "hit_ratio": n / 5} for n in range(1, 5)]
    answer = {name: {"curve": {"points": points}} for name in ("current", "proposed")}
    picture.save(tmp_path / "curve.svg", answer)
    drawn = (tmp_path / "curve.svg").read_text()
    assert drawn.count("<polyline") == 6 + 2 + 2 and "size of the fast tier" in drawn
    picture.save(tmp_path / "curve.png", answer)
    image = PIL.Image.open(tmp_path / "curve.png").convert("RGB")
    colours = {colour for _, colour in image.getcolors(1 << 20) or []}
    assert image.size == (1280, 800) and {(0x1F, 0x77, 0xB4), (255, 255, 255), (0, 0, 0)} <= colours
    with pytest.raises(ConfigError, match=r"\.svg or \.png"):
        picture.save(tmp_path / "curve.pdf", answer)


def test_what_the_service_refuses_of_a_policy_file_is_shown_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service gets a tree without lines; whoever wrote the file looks for a line."""
    path = tmp_path / "wanted.toml"
    path.write_text('version = 1\n\n[promoter]\nhalf_live = "1h"\n')

    def refuse(self: cluster.Http, method: str, path: str, **rest: Any) -> Any:
        raise RequestError("promoter.half_live is not a setting", code="bad-policy")

    monkeypatch.setattr(cluster.Http, "call", refuse)
    result = runner.invoke(
        main.app, ["admin", "policy", "check", str(path), "--endpoint", "http://127.0.0.1:1", "--token", "t"]
    )
    assert isinstance(result.exception, RequestError), result.output
    assert "line 4" in result.exception.detail and "half_life" in result.exception.detail


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('version = 1\n\n[[rules]]\nname = "a"\ncopies = 9\n', "line 5: 9 copies need 9"),
        ("version = 1\n[promoter]\nschedule = 22:00:00\n", "line 3: schedule is a daily window"),
        ("version = 1\n[promoter]\nbeta = nan\n", "line 3: beta is a number"),
        ("version = 1\nrules = " + "[" * 5000, "nested too deep"),
    ],
)
def test_a_policy_file_is_refused_with_its_lines_whoever_finds_the_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    """Only the service knows how many servers there are; some values of TOML cannot even be sent."""
    path = tmp_path / "wanted.toml"
    path.write_text(text)

    def answer(request: httpx.Request) -> httpx.Response:
        tree = json.loads(request.content)
        assert request.url.path == "/v1/admin/policy/check" and tree["rules"][0]["copies"] == 9
        problem = "rules[0].copies: 9 copies need 9 object servers"
        return httpx.Response(400, json={"code": "bad-policy", "detail": problem, "problems": [problem]})

    client = httpx.Client(base_url="http://127.0.0.1:1", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(policies, "open_http", lambda address: contextlib.nullcontext(cluster.Http(client)))
    result = runner.invoke(
        main.app, ["admin", "policy", "check", str(path), "--endpoint", "http://127.0.0.1:1", "--token", "t"]
    )
    client.close()
    assert isinstance(result.exception, TierstoreError), result.output
    assert result.exception.exit_code == 2 and said in result.exception.detail, result.exception.detail
