"""What a mount knows of files, by number and by name."""

from __future__ import annotations

from tierstore.files.node import ROOT, Nodes
from tierstore.wire.files import S_IFDIR, Attributes, Entry


def test_the_end_of_a_close_takes_no_newer_node_of_the_file_along() -> None:
    """The kernel forgot the file while its last close was being committed, and looked it up again: it may be open."""
    nodes = Nodes(Attributes(ROOT, S_IFDIR | 0o755))
    root = nodes.by_ino[ROOT]
    entry = Entry("f", Attributes(7, 0o100644))
    closing = nodes.learn(root, entry)
    closing.alias = 8       # as metadata numbers it, and the kernel does not
    nodes.aliases[8] = closing
    nodes.drop_if_idle(closing)
    assert 7 not in nodes.by_ino and not nodes.aliases and not root.children
    opened = nodes.learn(root, entry)
    opened.opens, opened.alias = 1, 8
    nodes.aliases[8] = opened
    nodes.drop_if_idle(closing)     # its close is over
    assert nodes.by_ino[7] is nodes.aliases[8] is opened
    assert nodes.child(ROOT, "f") is opened and root.children == 1
