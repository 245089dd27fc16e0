"""Where a file is now that another mount, or another door, has renamed or unlinked it while it is open here.

Metadata finds files by path, and a program that has one open does not care about its path. So when a path leads
nowhere, or to another file, the others are tried in this order: names under which this mount has seen the file too;
where the change feed said that something went at the moment the file's name went; among the files without a name, which
metadata keeps for those who say that they have them open (docs/adr/0550); and, for open files only, a search by number,
which is a pass over the bucket (docs/adr/0240, 0481).

Invariants: a file is looked for once at a time, and who waited for that while it was found asks at its new path; a
search that is under way, or that failed, says nothing of where the file is.
Bounds: HINTS_MAX moves are remembered; a file that was not found is not searched for again for SEARCH_AGAIN_SECONDS.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import groupby, pairwise
from typing import Final
from weakref import WeakValueDictionary

from tierstore.errors import NotFound, TierstoreError
from tierstore.files.node import ROOT, Node, Nodes
from tierstore.files.remote import FilesRemote
from tierstore.wire.files import Changed, Entry, Hold, Look, Remove, orphan_path

HINTS_MAX: Final = 1024
SEARCH_AGAIN_SECONDS: Final = 30.0
#: A file that is renamed again while it is followed is followed so often.
FOLLOWS_MAX: Final = 4
#: Longer than any path: names that go round in a circle end here.
PATH_MAX: Final = 16384
#: What metadata says when a path does not lead to the file any more.
_LOST: Final = frozenset({"no-such-file", "no-such-directory", "not-directory", "stale-file"})


def is_lost(error: TierstoreError) -> bool:
    """Whether the error says that the file is not where it was."""
    return error.code in _LOST


class Whereabouts:
    """One per mount. Event loop only. found: files that were found again."""

    def __init__(
        self, bucket: str, nodes: Nodes, remote: FilesRemote, *, mount: str,
        lookup: Callable[[Node, str], Awaitable[Node]], take_in: Callable[[Node, Entry], Node],
    ) -> None:  # fmt: skip
        """lookup: (directory, name) -> the node there; raises NotFound. take_in: what was found at a name of it."""
        self._bucket = bucket
        self._mount = mount
        self._nodes = nodes
        self._remote = remote
        self._lookup = lookup
        self._take_in = take_in
        #: Number -> the path that came when the file's own went.
        self._hints: dict[int, str] = {}
        self._searched_at: dict[int, float] = {}
        self._named_at: dict[int, float] = {}       # files that were looked for among those without a name in vain
        self._finding: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self.found = 0

    def note(self, changes: list[Changed]) -> None:
        """What the feed told, in its order: a rename is paths that go and, next, as many that come."""
        for gone, came in _moves(changes):
            node = self._nodes.at(gone.path)
            if node is not None and node.is_busy:
                self._hints[node.number] = came.path
                while len(self._hints) > HINTS_MAX:
                    del self._hints[next(iter(self._hints))]

    async def walk(self, path: str) -> Node:
        """The node at a path, with every name on the way looked up anew. Raises NotFound."""
        node = self._nodes.by_ino[ROOT]
        for name in path.split("/") if path else ():
            node = await self._lookup(node, name)
        return node

    async def find(self, node: Node, asked: str, *, may_search: bool = True) -> bool:
        """Have the node's path lead to it again; False when it is not found. asked: the path at which it was not ("":
        it had none)."""
        lock = self._finding.get(node.ino)
        if lock is None:
            lock = self._finding[node.ino] = asyncio.Lock()
        async with lock:
            with contextlib.suppress(NotFound):
                if self._nodes.path(node) != asked:
                    return True         # found since the caller asked
            if node.orphan or node.pending or node.ino == ROOT:
                return False
            return await self._find(node, may_search=may_search)

    async def _find(self, node: Node, *, may_search: bool) -> bool:
        for parent, name in list(reversed(node.names))[1:]:
            above = self._nodes.by_ino.get(parent)
            if above is not None and await self._is_at(node, self._nodes.path_of(above, name)):
                return True
        hint = self.hinted(node)
        if hint and await self._is_at(node, hint):
            return True
        is_due = _is_due(self._named_at, node.number)
        if is_due and await self._is_unlinked(node):
            return True
        if may_search and _is_due(self._searched_at, node.number):
            # It may have lost its last name between the look and the search.
            if await self._search(node) or await self._is_unlinked(node):
                return True
            self._searched_at[node.number] = time.monotonic()
        if is_due:
            self._named_at[node.number] = time.monotonic()
        return False

    def hinted(self, node: Node) -> str:
        """Where the feed said that the node went, or one of the directories above it; "": nothing was said."""
        rest, at = "", node
        while len(rest) <= PATH_MAX:
            hint = self._hints.get(at.number)
            if hint is not None:
                return hint + rest
            if not at.names:
                break
            parent, name = at.names[-1]
            above = self._nodes.by_ino.get(parent)
            if above is None:
                break
            rest, at = f"/{name}{rest}", above
        return ""

    async def _is_unlinked(self, node: Node) -> bool:
        """Whether it has lost its last name, and stays for those who have it open; then it is held from now on."""
        if not node.opens or node.attributes.is_directory:
            return False
        path = orphan_path(node.number)
        try:
            found = await self._remote.ask(Look(self._bucket, path))
        except TierstoreError as error:
            if not is_lost(error):
                raise
            return False
        assert found.entry is not None, "a look answers with an entry"
        with contextlib.suppress(TierstoreError):      # who may not write reads on, until the time to hold it is over
            await self._remote.change(Hold(self._bucket, path, time.time_ns(), self._mount))
        node.set(links=0, ctime_ns=found.entry.attributes.ctime_ns)     # nobody asks for them before they are told
        self._nodes.unname(node)
        if not node.opens:      # closed while it was being held: nobody else is going to let go of it
            with contextlib.suppress(TierstoreError):
                await self._remote.change(Remove(self._bucket, path, time.time_ns(), mount=self._mount))
        self.found += 1
        return True

    async def _search(self, node: Node) -> bool:
        for _ in range(FOLLOWS_MAX):
            entry = await self._remote.find(node.number)
            if entry is None:
                return False
            if await self._is_at(node, entry.name):     # else it has moved on since
                return True
        return False

    async def _is_at(self, node: Node, path: str) -> bool:
        """Whether the node is there; then that is its name from now on."""
        try:
            found = await self._remote.ask(Look(self._bucket, path))
            if found.entry is None or found.entry.attributes.ino != node.number:
                return False
            parent = await self.walk(path.rpartition("/")[0])
        except TierstoreError as error:
            if not is_lost(error):
                raise
            return False
        stale = node.names[-1] if node.names else None
        self._take_in(parent, found.entry)
        now = parent.ino, found.entry.name
        node.names.remove(now)
        node.names.append(now)
        if stale is not None and stale != now:
            self._nodes.forget_name(stale, node)
        self._named_at.pop(node.number, None)
        self._searched_at.pop(node.number, None)
        self.found += 1
        return True


def _moves(changes: list[Changed]) -> Iterator[tuple[Changed, Changed]]:
    """(what went, what came) of renames. A directory's are told in one piece: all paths below it that went, then all
    that came, in the same order; what was removed before or made after may stand beside them."""
    told = (change for change in changes if change.gone or not change.attributes_only)
    runs = [list(run) for _, run in groupby(told, key=lambda change: (change.directory, change.gone))]
    for went, came in pairwise(runs):
        if not went[0].gone or came[0].gone or went[0].directory != came[0].directory:
            continue
        for count in range(min(len(went), len(came)), 0, -1):
            first = _ends(went[-count].path, came[0].path)
            if _ends(went[-1].path, came[count - 1].path) != first:
                continue
            pairs = list(zip(went[-count:], came, strict=False))
            if all(_ends(before.path, after.path) == first for before, after in reversed(pairs)):
                yield from pairs
                break


def _ends(before: str, after: str) -> tuple[str, str]:
    """Two paths without the names at their ends that they share."""
    old, new = before.split("/"), after.split("/")
    while old and new and old[-1] == new[-1]:
        old.pop()
        new.pop()
    return "/".join(old), "/".join(new)


def _is_due(tried_at: dict[int, float], number: int) -> bool:
    """Whether a file may be looked for: HINTS_MAX files, each once in SEARCH_AGAIN_SECONDS."""
    now = time.monotonic()
    for tried, at in list(tried_at.items()):
        if now - at >= SEARCH_AGAIN_SECONDS:
            del tried_at[tried]
    return number not in tried_at and len(tried_at) < HINTS_MAX
