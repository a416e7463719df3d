# SPDX-License-Identifier: LGPL-3.0-or-later
"""The table of the nodes behind paths, against a plain model, and what keeps paths in place."""

import errno
import random
import stat

import anyio
import pytest

from truenas_os.fuse import FUSEError
from truenas_os.fuse.pathlocks import PathLocks
from truenas_os.fuse.pathnodes import NodeTable, OpenFile

FILE, DIRECTORY = stat.S_IFREG, stat.S_IFDIR
NAMES = "abc"


class Model:
    """What the kernel knows, as sets of paths, and the table that is to agree."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.table = NodeTable()
        self.root = self.table.root
        # What there is: an identity and a kind by path; and who knows it, by identity.
        self.tree = {}
        self.nodes = {}
        self.lookups = {}
        self.files = []
        self.identities = 0

    def some_directory(self):
        paths = [path for path, (_, kind) in self.tree.items() if kind == DIRECTORY]
        return self.random.choice(["", *paths])

    def node(self, path):
        return self.nodes[self.tree[path][0]] if path else self.root

    def knows(self, path):
        """The kernel knows the directories that lead somewhere."""
        return path == "" or self.tree[path][0] in self.nodes

    def below(self, path):
        return [each for each in self.tree if each.startswith(path + "/")]

    # What can happen.

    def make(self):
        parent, name = self.some_directory(), self.random.choice(NAMES)
        if parent + "/" + name not in self.tree:
            self.identities += 1
            kind = self.random.choice((FILE, DIRECTORY))
            self.tree[parent + "/" + name] = (self.identities, kind)

    def link(self):
        files = [path for path, (_, kind) in self.tree.items() if kind == FILE]
        new = self.some_directory() + "/" + self.random.choice(NAMES)
        if files and new not in self.tree:
            self.tree[new] = self.tree[self.random.choice(files)]

    def look_up(self):
        if not self.tree:
            return
        path = self.random.choice(list(self.tree))
        parent, _, name = path.rpartition("/")
        if not self.knows(parent):
            return
        identity, kind = self.tree[path]
        key = identity if kind == FILE else None
        node = self.table.look_up(self.node(parent), name, kind, key, identity + 1000)
        assert self.nodes.setdefault(identity, node) is node
        assert node.number == identity + 1000
        self.lookups[identity] = self.lookups.get(identity, 0) + 1

    def forget(self):
        known = [identity for identity, count in self.lookups.items() if count]
        if not known:
            return
        identity = self.random.choice(known)
        leads = [path for path, (each, _) in self.tree.items() if each == identity]
        if any(self.knows(each) for path in leads for each in self.below(path)):
            return  # the kernel forgets what is below first
        count = self.random.randint(1, self.lookups[identity])
        self.lookups[identity] -= count
        self.table.forget(self.nodes[identity], count)
        self.drop(identity)

    def drop(self, identity):
        is_open = any(file.node is self.nodes[identity] for file in self.files)
        if not self.lookups[identity] and not is_open:
            del self.nodes[identity]

    def remove(self):
        leaves = [path for path in self.tree if not self.below(path)]
        if leaves:
            path = self.random.choice(leaves)
            parent, _, name = path.rpartition("/")
            if self.knows(parent):
                self.table.remove(self.node(parent), name)
                self.gone(*self.tree.pop(path))

    def gone(self, identity, kind):
        """Links that are not known yet will not be those of a node without any name."""
        if identity in self.nodes and not self.nodes[identity].names:
            self.identities += 1
            for path, (each, _) in self.tree.items():
                if each == identity:
                    self.tree[path] = (self.identities, kind)

    def move(self):
        if not self.tree:
            return
        old = self.random.choice(list(self.tree))
        new = self.some_directory() + "/" + self.random.choice(NAMES)
        parent, _, name = old.rpartition("/")
        into, _, new_name = new.rpartition("/")
        if new == old or new.startswith(old + "/") or self.below(new):
            return
        if not (self.knows(parent) and self.knows(into)):
            return
        if new in self.tree and self.tree[new] == self.tree[old]:
            return  # two links to one file stay where they are
        self.table.move(self.node(parent), name, self.node(into), new_name)
        if new in self.tree:
            self.gone(*self.tree.pop(new))
        for path in [old, *self.below(old)]:
            self.tree[new + path[len(old) :]] = self.tree.pop(path)

    def open(self):
        if self.nodes:
            self.files.append(OpenFile(self.random.choice(list(self.nodes.values())), 0, None))
            self.table.open(self.files[-1])

    def close(self):
        if self.files:
            file = self.files.pop(self.random.randrange(len(self.files)))
            self.table.close(file)
            self.drop(next(each for each, node in self.nodes.items() if node is file.node))

    def check(self):
        for identity, node in self.nodes.items():
            assert self.table[node.number] is node
            paths = {path for path, (each, _) in self.tree.items() if each == identity}
            found = self.table.path(node)
            if found is None:
                # It was removed, or only names are left that the table was not told of.
                assert not node.names
            else:
                assert found in paths
                known = {self.table.path_in(*name) for name in node.names}
                assert known <= paths
        # Directories above what is needed are needed, too; nothing else is.
        needed = {id(node) for node in self.nodes.values()} | {id(self.root)}
        for node in list(self.nodes.values()):
            needed |= {id(each) for name in node.names for each in self.table.chain(name[0])}
        assert len(self.table) == len(needed)


@pytest.mark.parametrize("seed", range(40))
def test_random_operations_agree_with_a_plain_model(seed):
    model = Model(seed)
    operations = [model.make, model.link, model.look_up, model.look_up, model.forget]
    operations += [model.remove, model.move, model.move, model.open, model.close]
    for _ in range(400):
        model.random.choice(operations)()
        model.check()
    assert model.identities > 5


def test_a_name_that_leads_elsewhere_leaves_its_old_node_without_one():
    table = NodeTable()
    old = table.look_up(table.root, "a", FILE, 1, 5)
    new = table.look_up(table.root, "a", FILE, 2, 5)
    assert (table.path(old), table.path(new)) == (None, "/a")
    assert old.number == 5 and new.number >= 1 << 63
    table.forget(old, 1)
    with pytest.raises(KeyError):
        table[5]


def test_what_has_no_key_is_known_by_its_name_and_kind():
    table = NodeTable()
    first = table.look_up(table.root, "a", FILE, None, 0)
    assert table.look_up(table.root, "a", FILE, None, 0) is first
    assert table.look_up(table.root, "a", DIRECTORY, None, 0) is not first
    assert table.look_up(table.root, "b", FILE, None, 0) is not first


def test_a_key_is_free_again_once_its_last_name_is_gone():
    table = NodeTable()
    first = table.look_up(table.root, "a", FILE, 7, 7)
    table.remove(table.root, "a")
    assert table.look_up(table.root, "b", FILE, 7, 7) is not first


def test_what_was_below_a_removed_directory_has_no_path():
    table = NodeTable()
    directory = table.look_up(table.root, "d", DIRECTORY, None, 0)
    for _ in range(2000):
        directory = table.look_up(directory, "d", DIRECTORY, None, 0)
    assert table.path(directory) == "/d" * 2001
    table.remove(table.root, "d")
    assert table.path(directory) is None


def test_what_is_found_in_a_directory_after_its_removal_has_no_path():
    table = NodeTable()
    directory = table.look_up(table.root, "d", DIRECTORY, None, 0)
    table.remove(table.root, "d")
    found = table.look_up(directory, "f", FILE, 7, 7)
    # Least of all that of an entry of the root.
    assert (table.path(found), table.path_in(found, "x")) == (None, None)


@pytest.mark.anyio
async def test_a_change_waits_for_who_uses_a_path_and_others_wait_for_the_change():
    table, locks, order = NodeTable(), PathLocks(), []
    directory = table.look_up(table.root, "d", DIRECTORY, None, 0)
    file = table.look_up(directory, "f", FILE, None, 0)
    other = table.look_up(table.root, "o", FILE, None, 0)

    async def use(name, node, entry=None):
        used = await locks.use(lambda: table.chain(node), entry)
        order.append(name)
        locks.leave(used)

    async def change():
        entries = ((table.root, "d"), (table.root, "e"))
        order.append("change")
        used, moved = await locks.begin_change(entries, lambda: ([], [directory]))
        order.append("begun")
        await release.wait()
        table.move(*entries[0], *entries[1])
        locks.end_change(entries, used, moved)

    release = anyio.Event()
    with anyio.fail_after(20):
        first = await locks.use(lambda: table.chain(file))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(change)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(use, "below", file)
            tasks.start_soon(use, "missing", table.root, (table.root, "e"))
            tasks.start_soon(use, "elsewhere", other)
            await anyio.wait_all_tasks_blocked()
            assert order == ["change", "elsewhere"]
            locks.leave(first)
            await anyio.wait_all_tasks_blocked()
            assert order == ["change", "elsewhere", "begun"]
            release.set()
        assert sorted(order[3:]) == ["below", "missing"]
    assert table.path(file) == "/e/f"
    assert (file.users, directory.users, directory.is_moving) == (0, 0, False)


@pytest.mark.anyio
async def test_a_change_that_is_cancelled_holds_nobody_up():
    table, locks = NodeTable(), PathLocks()
    file = table.look_up(table.root, "f", FILE, None, 0)
    used = await locks.use(lambda: [file])
    with anyio.move_on_after(0) as scope:
        await locks.begin_change([(table.root, "f")], lambda: ([], [file]))
    assert scope.cancelled_caught
    with anyio.fail_after(20):
        await locks.use(lambda: [file], (table.root, "f"))
    locks.leave(used)


@pytest.mark.anyio
async def test_what_is_above_is_not_replaced_by_what_is_below():
    table, locks = NodeTable(), PathLocks()
    directory = table.look_up(table.root, "d", DIRECTORY, None, 0)
    with pytest.raises(FUSEError) as caught:
        await locks.begin_change([(table.root, "d")], lambda: ([directory], [directory]))
    assert caught.value.errno == errno.ENOTEMPTY
