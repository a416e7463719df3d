# SPDX-License-Identifier: LGPL-3.0-or-later
"""Walks that are killed by kill -9 and go on from what was saved before.

``main(directory, how)`` walks a directory by one process after the other. Each sends what it has
consumed, and the token of then, and is killed after so many items, or before its nth system call.
What it sent last may be lost. Between two processes, entries of other names come and go.
"""

import contextlib
import json
import os
import random
import select
import signal
import struct
import traceback

import faults
from grown import directories

from truenas_os import blocking

_LENGTHS = struct.Struct("<II")
MARKS = {"resume_token_name": "user.walked", "resume_token_data": bytes(range(16))}


def send(where, writer, token, options):
    """The walk of the process that is killed."""
    with blocking.walk(where, resume_from=token, **options) as walk:
        for item in walk:
            path, now = os.fsencode(item.path), bytes(walk.resume_token())
            os.write(writer, _LENGTHS.pack(len(path), len(now)) + path + now)


def records(sent):
    """The items that have arrived as a whole, and the token after each."""
    found = []
    while len(sent) >= _LENGTHS.size:
        path, token = _LENGTHS.unpack_from(sent)
        if len(sent) < (end := _LENGTHS.size + path + token):
            break
        found.append((sent[_LENGTHS.size : end - token], sent[end - token : end]))
        sent = sent[end:]
    return found


@contextlib.contextmanager
def told():
    """Whatever goes wrong is printed, and goes no further: this is a forked child."""
    try:
        yield
    except BaseException:
        traceback.print_exc()


def killed(where, token, options, chance):
    """What a process has sent until it was killed, or until its end, and which it was."""
    nth = chance.choice([None, chance.randrange(40), chance.randrange(300)])
    enough = chance.randrange(20_000)
    reader, writer = os.pipe()
    reached, reaching = os.pipe()
    waiting, _going = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        with told():
            os.close(reader)
            if nth is not None:
                faults.lib.tos_fault_arm(-1, nth, 1, 0, reaching, waiting)
            send(where, writer, token, options)
            code = 0
        os._exit(code)
    os.close(writer)
    os.close(reaching)
    sent = b""
    ended = False
    while not ended:
        ready = select.select([reader] if nth is None else [reader, reached], [], [], 60)[0]
        assert ready, "neither killed nor ended"
        if reached in ready and os.read(reached, 1):
            break
        if reader in ready:
            ended = not (arrived := os.read(reader, 4096))
            sent += arrived
        if nth is None and len(sent) >= enough:
            break
    if not ended:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    # One that was to be killed may have come to its end before.
    assert status == 0 or (not ended and status == signal.SIGKILL), status
    while late := os.read(reader, 4096):
        sent += late
    for fd in (reader, reached, waiting, _going):
        os.close(fd)
    return records(sent), ended


def change(where, chance, token):
    """Entries come and go beside those that stay, and those in which the walk stands."""
    levels = blocking.ResumeToken(token).position.levels if token else ()
    on_the_way = {os.fsencode(level.name) for level in levels}
    for directory in chance.sample(directories(where), 2):
        if b"extra" in directory:
            continue
        names = [name for name in os.listdir(directory) if name.startswith(b"extra")]
        names = [name for name in names if name not in on_the_way]
        for name in chance.sample(names, len(names) // 2):
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
        for _ in range(chance.randrange(6)):
            path = os.path.join(directory, b"extra %d" % chance.randrange(10_000))
            with contextlib.suppress(FileExistsError):
                os.mkdir(path) if chance.random() < 0.3 else open(path, "x").close()


def unmark(where):
    for path in directories(where):
        with contextlib.suppress(OSError):
            os.removexattr(path, MARKS["resume_token_name"])


def by_tokens(where, kills, chance, changing):
    """The items of each whole walk, each made by as many processes as it took."""
    walks, count = [], 0
    while count < kills:
        saved, token, ended = [], None, False
        while not ended:
            arrived, ended = killed(where, token, {}, chance)
            if not ended:
                count += 1
                arrived = arrived[: chance.randrange(len(arrived) + 1)]
            saved += [path for path, _ in arrived]
            token = arrived[-1][1] if arrived else token
            if changing:
                change(where, chance, token)
        walks.append([path.hex() for path in saved if b"extra" not in path])
    return {"walks": walks, "kills": count}


def by_marks(where, kills, chance):
    """What was consumed by each series of processes, and which marks there were too early."""
    walks, early, count = [], [], 0
    while count < kills:
        seen, ended = set(), False
        unmark(where)
        while not ended:
            arrived, ended = killed(where, None, MARKS, chance)
            count += not ended
            seen |= {path for path, _ in arrived}
            for directory in directories(where):
                with contextlib.suppress(OSError):
                    os.getxattr(directory, MARKS["resume_token_name"])
                    for path, inside, files in os.walk(directory):
                        every = {os.path.join(path, name) for name in inside + files}
                        early += [one.hex() for one in every - seen]
        walks.append([path.hex() for path in seen])
    return {"walks": walks, "kills": count, "early": early}


def main(directory, how, kills, seed):
    chance = random.Random(seed)
    where = os.fsencode(directory)
    if how == "marks":
        result = by_marks(where, kills, chance)
    else:
        result = by_tokens(where, kills, chance, how == "changing")
    print(json.dumps(result))
