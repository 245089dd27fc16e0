"""Inodes that a mount knows: those the kernel holds, those that are open, and those not yet committed.

A node has the names under which it was seen; its path is found by walking up. What is known of a name (dentries) is
only as good as the last answer of metadata: the tree asks again unless the change feed vouches for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from tierstore.errors import NotFound
from tierstore.files.body import Body
from tierstore.wire.files import Attributes, Entry, orphan_path

ROOT: Final = 1


@dataclass(slots=True, eq=False)
class Node:
    """lookups: how many answers of the kernel's are out; opens: handles. pending: its name is not committed yet.
    orphan: its last name is gone; unlinked_elsewhere: by another's hand, so the kernel may still lead to it.
    pinned_times: set by a program after its last write."""

    ino: int
    attributes: Attributes
    size: int = 0
    version: int = 0
    names: list[tuple[int, str]] = field(default_factory=list)
    lookups: int = 0
    opens: int = 0
    body: Body | None = None
    pending: bool = False
    orphan: bool = False
    unlinked_elsewhere: bool = False
    pinned_times: bool = False
    clear_setuid: bool = False
    checked_at: float = -1e9
    extents: int = 0
    children: int = 0
    alias: int = 0

    @property
    def number(self) -> int:
        """Its number at metadata: another one when two mounts made the same name at the same time."""
        return self.alias or self.ino

    @property
    def is_busy(self) -> bool:
        """Must not be forgotten."""
        is_dirty = self.body is not None and self.body.is_dirty
        return self.lookups > 0 or self.opens > 0 or self.pending or self.children > 0 or is_dirty

    def entry_size(self) -> int:
        if self.attributes.target:
            return len(self.attributes.target)
        return self.body.size if self.body is not None else self.size

    def set(self, **values: object) -> None:
        self.attributes = msgspec.structs.replace(self.attributes, **values)


class Nodes:
    """All nodes of one mount, by number and by name."""

    def __init__(self, root: Attributes) -> None:
        self.by_ino: dict[int, Node] = {ROOT: Node(ROOT, root, lookups=1)}
        self.by_name: dict[tuple[int, str], Node] = {}
        self.aliases: dict[int, Node] = {}
        #: Told of names that turned out not to be a node's any more: (directory, name). Whoever mounts sets it.
        self.on_lost_name: Callable[[int, str], None] = lambda parent, name: None

    def child(self, parent: int, name: str) -> Node | None:
        return self.by_name.get((parent, name))

    def path(self, node: Node) -> str:
        """Raises NotFound when the node's name is gone."""
        names: list[str] = []
        while node.ino != ROOT:
            if node.orphan:
                return orphan_path(node.number)
            if not node.names or len(names) > 4096:
                raise NotFound("the file's name is gone", code="stale-file")
            parent, name = node.names[-1]
            names.append(name)
            above = self.by_ino.get(parent)
            if above is None:
                raise NotFound("the file's directory is gone", code="stale-file")
            node = above
        return "/".join(reversed(names))

    def at(self, path: str) -> Node | None:
        """The node at a path, as far as the names on the way are known here."""
        node: Node | None = self.by_ino[ROOT]
        for name in path.split("/") if path else ():
            if node is None:
                return None
            node = self.by_name.get((node.ino, name))
        return node

    def path_of(self, parent: Node, name: str) -> str:
        above = self.path(parent)
        return f"{above}/{name}" if above else name

    def learn(self, parent: Node, entry: Entry) -> Node:
        """The node for an entry seen in a directory, made when it is new."""
        ino = entry.attributes.ino
        node = self.by_ino.get(ino) or self.aliases.get(ino)
        if node is None:
            node = self.by_ino[ino] = Node(ino, entry.attributes, entry.size, entry.version)
        self.bind(parent, entry.name, node)
        return node

    def bind(self, parent: Node, name: str, node: Node) -> None:
        key = (parent.ino, name)
        held = self.by_name.get(key)
        if held is node:
            return
        if held is not None:
            self.unbind(parent, name)
        if node.attributes.is_directory:
            for old in list(node.names):      # a directory has one name
                self._drop_name(old, node)
        self.by_name[key] = node
        node.names.append(key)
        parent.children += 1

    def _drop_name(self, key: tuple[int, str], node: Node) -> None:
        if self.by_name.get(key) is node:
            del self.by_name[key]
        node.names = [other for other in node.names if other != key]
        parent = self.by_ino.get(key[0])
        if parent is not None:
            parent.children -= 1

    def forget_name(self, key: tuple[int, str], node: Node) -> None:
        """The node is not at that name any more (it has another one, or none)."""
        self._drop_name(key, node)
        self.on_lost_name(*key)
        parent = self.by_ino.get(key[0])
        if parent is not None:
            self.drop_if_idle(parent)

    def unname(self, node: Node) -> None:
        """The node has lost its last name."""
        node.orphan = node.unlinked_elsewhere = True
        for key in list(node.names):
            self.forget_name(key, node)

    def move(self, parent: Node, name: str, node: Node) -> None:
        """The node has lost that name, to another one that is bound next."""
        self._drop_name((parent.ino, name), node)

    def unbind(self, parent: Node, name: str) -> Node | None:
        key = (parent.ino, name)
        node = self.by_name.get(key)
        if node is not None:
            self._drop_name(key, node)
            self.drop_if_idle(node)
        return node

    def drop_if_idle(self, node: Node) -> None:
        """Forget a node that nobody holds, and directories that only it held. One that was forgotten already, whose
        last close ends only now, takes nothing along: the kernel may know its file by another node since."""
        if node.ino == ROOT or node.is_busy:
            return
        if self.by_ino.get(node.ino) is node:
            del self.by_ino[node.ino]
        if self.aliases.get(node.alias) is node:
            del self.aliases[node.alias]
        for key in list(node.names):
            self._drop_name(key, node)
            parent = self.by_ino.get(key[0])
            if parent is not None:
                self.drop_if_idle(parent)
