# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The daemon is lost between any two questions to it: the run ends with a reason, the next run finishes."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import at_work_in
from support.hypervisors import disk
from support.images import MIB, digest, make, sh, wait_until
from support.inprocess import server
from support.jobs import has_no_job
from support.runs import environment

DEEP = int(os.environ.get("HYPERVISOR_STORAGE_MOMENTS", "3")) > 3
#: More questions than any of these runs asks.
MANY = 400


class Line:
    """A socket that passes on what is said to a daemon, and goes dead before the question of a given number.

    A message begins with its length (https://libvirt.org/kbase/internals/rpc.html).
    """

    def __init__(self, uri, path):
        self._daemon = parse_qs(urlsplit(uri).query)["socket"][0]
        self.uri = uri.replace(self._daemon, str(path))
        self.left = MANY
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            with contextlib.suppress(OSError):
                near, _address = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._daemon)
                threading.Thread(target=self._ask, args=(near, far), daemon=True).start()
                threading.Thread(target=self._answer, args=(near, far), daemon=True).start()

    def _ask(self, near, far):
        with contextlib.suppress(OSError, EOFError):
            while True:
                head = _exactly(near, 4)
                body = _exactly(near, struct.unpack(">I", head)[0] - 4)
                if self.left <= 0:
                    break
                self.left -= 1
                far.sendall(head + body)
        for end in (near, far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _answer(self, near, far):
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                near.sendall(data)
        for end in (near, far):
            end.close()


def _exactly(connection, length):
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise EOFError
        data += part
    return data


@pytest.fixture
def line(hypervisor, place):
    path = place / "line"
    path.unlink(missing_ok=True)
    return Line(hypervisor.uri, path)


@pytest.fixture(scope="module")
def modules():
    with server("fork", environment()) as running:
        yield running


WISHES = {
    "create": ("volume", {"name": "b", "template": "a", "clone_mode": "full"}),
    "create backed": ("volume", {"name": "b", "template": "a"}),
    "delete": ("volume", {"name": "a", "state": "absent"}),
    "clone": ("volume_clone", {"name": "b", "source": "a"}),
    "resize": ("volume_resize", {"name": "a", "size": "8M"}),
    "compress": ("volume_compress", {"name": "a", "method": "zeros", "min_reclaim": "64K"}),
    "list": ("volume_info", {}),
}


@pytest.mark.parametrize("wish", WISHES)
def test_lost_before_any_question(line, modules, pool, place, wish):
    module, params = WISHES[wish]
    master = make(place / "line-master", size=4 * MIB)
    sh("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 1M 1M", "-c", "write -q -P 0 1M 1M", master)
    content = digest(master)
    master_bytes = master.read_bytes()
    asked = ends = 0
    for asked in range(MANY):
        for path in pool.path.iterdir():
            path.unlink()
        (pool / "a").write_bytes(master_bytes)
        line.left = asked
        result = modules.run(module, uri=line.uri, pool=pool.name, **params)["result"]
        lost = line.left <= 0
        if result.get("failed"):
            assert lost, result
            assert result["reason"] == "connection_failed", (asked, result)
            ends += 1
        elif lost:
            assert wish == "list" or result["changed"]
        if (pool / "a").exists():
            assert wish in ("resize", "compress") or digest(pool / "a") == content
        else:
            assert wish == "delete"
        if wish in ("create", "create backed", "clone") and (pool / "b").exists():
            assert digest(pool / "b") == content
        line.left = MANY
        again = modules.run(module, uri=line.uri, pool=pool.name, **params)["result"]
        assert not again.get("failed"), (asked, again)
        assert set(os.listdir(pool.path)) <= {"a", "b"}
        if not lost:
            break
    assert ends > 5 and asked < MANY - 1
    assert at_work_in(pool.path) == []


def test_lost_before_any_question_of_a_live_clone(line, modules, hypervisor, pool, domain):
    make(pool / "a", size=4 * MIB)
    content = digest(pool / "a")
    running = domain(disk(pool / "a"))
    step = 1 if DEEP else 4
    for asked in itertools.count(0, step):
        (pool / "b").unlink(missing_ok=True)
        line.left = asked
        result = modules.run("volume_clone", uri=line.uri, pool=pool.name, source="a", name="b")["result"]
        lost = line.left <= 0
        if result.get("failed"):
            assert lost and result["reason"] == "connection_failed", (asked, result)
        wait_until(lambda: has_no_job(running), timeout=10)
        line.left = MANY
        again = modules.run("volume_clone", uri=line.uri, pool=pool.name, source="a", name="b")["result"]
        assert not again.get("failed"), (asked, again)
        assert digest(pool / "b") == content and sorted(os.listdir(pool.path)) == ["a", "b"]
        if not lost:
            break
    assert asked > 20
