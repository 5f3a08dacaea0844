# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hypervisor without libvirt: pools on real directories, domains as documents, and a view that grows stale."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible.module_utils.common import warnings
from ansible_collections.hypervisor.storage.plugins.module_utils import (
    _directory,
    _running,
    _image_locks,
    _libvirt,
    _locks,
    _pool_changes,
    _xml,
)
from ansible_collections.hypervisor.storage.plugins.module_utils._errors import LibvirtError, PoolInactive, PoolNotFound
from ansible_collections.hypervisor.storage.plugins.module_utils._image_header import raw_header
from ansible_collections.hypervisor.storage.plugins.module_utils._libvirt import DomainFacts
from ansible_collections.hypervisor.storage.plugins.module_utils._model import Pool
from ansible_collections.hypervisor.storage.plugins.module_utils._xml import VolumeDef

Result = dict[str, Any]


class FakeConnection:
    """What _libvirt.Connection offers; libvirt's view of a directory is that of the last refresh."""

    uri = "fake:///system"

    def __init__(self) -> None:
        self.remote = False
        self._pools: dict[str, Pool] = {}
        self._views: dict[str, dict[str, VolumeDef]] = {}
        self._domains: dict[str, DomainFacts] = {}
        self.calls: list[tuple[Any, ...]] = []

    # -- what tests set up -------------------------------------------------------------------------

    def add_pool(self, name: str, path: Path | None, *, pool_type: str = "dir", active: bool = True) -> Pool:
        pool = Pool(
            name, str(uuid.uuid5(uuid.NAMESPACE_DNS, name)), pool_type, str(path) if path else None, active=active,
            available=1 << 30,
        )  # fmt: skip
        self._pools[name] = pool
        self._views[pool.uuid] = {}
        return pool

    def add_domain(self, name: str, *disks: str, live: bool = False, snapshots: tuple[str, ...] = ()) -> None:
        document = f"<domain><name>{name}</name><devices>{''.join(disks)}</devices></domain>"
        self._domains[name] = DomainFacts(
            name, f"uuid-{name}", "running" if live else "shutoff", document if live else None, document, snapshots
        )

    def remove_domain(self, name: str) -> None:
        del self._domains[name]

    def known(self, pool: str) -> list[str]:
        """The names that libvirt has in its list."""
        return sorted(self._views[self._pools[pool].uuid])

    # -- what the collection asks ------------------------------------------------------------------

    def active_pools(self) -> list[Pool]:
        return sorted((pool for pool in self._pools.values() if pool.active), key=lambda pool: pool.name)

    def inactive_pools(self) -> list[str]:
        return sorted(pool.name for pool in self._pools.values() if not pool.active)

    def pool(self, name: str) -> Pool:
        pool = self._pools.get(name)
        if pool is None:
            raise PoolNotFound(f"There is no storage pool {name!r}.", pool=name)
        if not pool.active:
            raise PoolInactive(f"Storage pool {name!r} is not active.", pool=name)
        return pool

    def refresh(self, pool: Pool) -> None:
        if pool.stores_files and pool.path is not None:  # of others, only libvirt itself can say what is there: that is a look
            self.calls.append(("refresh", pool.name))
            found = (_directory.look_at(entry.path) for entry in os.scandir(pool.path))
            self._views[pool.uuid] = {
                facts.name: self._define(facts) for facts in found if facts is not None and facts.kind != "other"
            }

    @staticmethod
    def _define(facts: _directory.FileFacts) -> VolumeDef:
        header = facts.header or raw_header(0)
        return VolumeDef(
            name=facts.name, key=facts.path, path=facts.path, type="dir" if facts.kind == "directory" else "file",
            format=header.format, capacity=header.capacity, allocation=facts.allocation,
            backing_path=header.backing_file, backing_format=header.backing_format, encrypted=False,
        )  # fmt: skip

    def volume(self, pool: Pool, name: str) -> VolumeDef | None:
        return self._views[pool.uuid].get(name)

    def knows_volume(self, pool: Pool, name: str) -> bool:
        return self.volume(pool, name) is not None

    def volumes(self, pool: Pool) -> list[VolumeDef]:
        return list(self._views[pool.uuid].values())

    def create_volume(self, pool: Pool, document: str) -> None:
        asked = _xml.parse_volume(document)
        if asked.name in self._views[pool.uuid]:
            raise LibvirtError(f"storage volume {asked.name!r} exists already")
        self.calls.append(("create", pool.name, asked.name))
        path = f"{pool.path or pool.name}/{asked.name}"
        self._views[pool.uuid][asked.name] = asked._replace(key=path, path=path, type=pool.volume_type)

    def delete_volume(self, pool: Pool, name: str) -> bool:
        definition = self._views[pool.uuid].pop(name, None)
        if definition is None:
            return False
        self.calls.append(("delete", pool.name, name))
        if pool.stores_files:
            with contextlib.suppress(FileNotFoundError):  # as libvirt does
                os.unlink(definition.path)
        return True

    def rename(self, pool: str, path: str, name: str) -> None:
        """What a storage's own tool does."""
        view = self._views[self._pools[pool].uuid]
        old = os.path.basename(path)
        self.calls.append(("rename", old, name))
        view[name] = view.pop(old)._replace(name=name, path=f"{os.path.dirname(path)}/{name}")

    def wipe_volume(self, pool: Pool, name: str) -> None:
        self.calls.append(("wipe", pool.name, name))

    def domains(self) -> list[DomainFacts]:
        return list(self._domains.values())

    def assert_no_block_job(self, *, domain_uuid: str, target: str, what: str) -> None:
        pass

    def block_resize(self, *, domain_uuid: str, target: str, capacity: int, what: str) -> None:
        self.calls.append(("block_resize", domain_uuid, target, capacity))
        for path, fmt in self._disks(domain_uuid, target):
            subprocess.run(["qemu-img", "resize", "-q", "-f", fmt, path, str(capacity)], check=True)

    def block_capacity(self, *, domain_uuid: str, target: str) -> int:
        ((path, fmt),) = self._disks(domain_uuid, target)
        facts = _directory.look_at(path, known_raw=fmt == "raw")
        assert facts is not None and facts.header is not None
        return facts.header.capacity

    def _disks(self, domain_uuid: str, target: str) -> list[tuple[str, str]]:
        (live,) = (domain.live_xml for domain in self._domains.values() if domain.uuid == domain_uuid)
        return [
            (str(disk.source.path), str(disk.format))
            for disk in _xml.parse_domain_disks(live or "")
            if disk.target == target
        ]

    def is_read_only(self) -> bool:
        return False

    def is_remote(self) -> bool:
        return self.remote


def disk(path: object, *, fmt: str = "qcow2", target: str = "vda") -> str:
    """A disk of a domain's document."""
    return f"<disk type='file'><driver type='{fmt}'/><source file='{path}'/><target dev='{target}' bus='virtio'/></disk>"


def note_syncs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """What is synced, by inode, and what gets a name, in this order."""
    noted: list[tuple[str, object]] = []
    sync, link, rename, truncate = os.fsync, os.link, os.rename, os.ftruncate

    def note_sync(fd: int) -> None:
        sync(fd)
        noted.append(("synced", os.fstat(fd).st_ino))

    def note_link(source: Any, name: Any, **where: Any) -> None:
        noted.append(("named", os.path.basename(name)))
        link(source, name, **where)

    def note_rename(source: Any, name: Any, **where: Any) -> None:
        noted.append(("named", os.path.basename(name)))
        rename(source, name, **where)

    def note_truncate(fd: int, size: int) -> None:
        noted.append(("written", os.fstat(fd).st_ino))
        truncate(fd, size)

    for name, function in (("fsync", note_sync), ("link", note_link), ("rename", note_rename), ("ftruncate", note_truncate)):
        monkeypatch.setattr(os, name, function)
    return noted


def _asked_of_the_connection(name: str) -> Callable[..., Any]:
    """A function of a connection, as the fake connection's method of that name."""
    return lambda connection, *args, **named: getattr(connection, name)(*args, **named)


class Hypervisor:
    """A pool 'default' in a directory, and modules run on it as Ansible runs them, within this process."""

    def __init__(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.connection = FakeConnection()
        self.directory = directory / "default"
        self.directory.mkdir()
        self.connection.add_pool("default", self.directory)
        monkeypatch.setattr(_libvirt, "is_installed", lambda: True)
        monkeypatch.setattr(_libvirt, "connect", self._connect)
        changes = {
            _pool_changes: ("refresh", "create_volume", "delete_volume", "wipe_volume"),
            _running: ("assert_no_block_job", "block_resize", "block_capacity"),
        }
        for module, names in changes.items():
            for name in names:
                monkeypatch.setattr(module, name, _asked_of_the_connection(name))
        monkeypatch.setattr(_locks, "_lock_home", lambda: str(directory / "names.lock"))
        monkeypatch.setattr(_image_locks, "IMAGE_TIMEOUT", 0.05)
        # What is really free moves by itself.
        monkeypatch.setattr(_directory, "free_bytes", lambda path: 1 << 30)
        monkeypatch.setattr(_directory, "usage_bytes", lambda path: (10 << 30, 9 << 30, 1 << 30))
        monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)

    @contextlib.contextmanager
    def _connect(self, uri: str) -> Iterator[FakeConnection]:
        yield self.connection

    def add_pool(self, name: str) -> Path:
        """Another pool made of files."""
        path = self.directory.parent / name
        path.mkdir()
        self.connection.add_pool(name, path)
        return path

    def run(self, module: ModuleType, *, check: bool = False, **params: object) -> Result:
        """The module's result, also when it failed."""
        arguments = {**params, "_ansible_check_mode": check, "_ansible_diff": True}
        self._monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
        self._monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        warnings._global_warnings.clear()  # one process, one module: so Ansible thinks
        self._capsys.readouterr()
        with pytest.raises(SystemExit):
            module.main()
        result: Result = json.loads(self._capsys.readouterr().out)
        return result

    def predict_and_run(self, module: ModuleType, **params: object) -> Result:
        """Check mode first: it touches nothing, and foretells what comes."""
        before = self.picture()
        foretold = self.run(module, check=True, **params)
        assert self.picture() == before
        result = self.run(module, **params)
        keys = ("changed", "failed", "reason", "msg", "actions", "diff", "warnings", "attachments", "dependents")
        assert {key: foretold.get(key) for key in keys} == {key: result.get(key) for key in keys}
        if result.get("failed"):
            assert self.picture() == before
        elif not result["changed"]:
            assert result["diff"]["before"] == result["diff"]["after"]
            assert self.files() == before[0]
        return result

    def files(self) -> dict[str, Any]:
        """All that lies beside the pools and in them: identity, times, rights, content."""
        found: dict[str, Any] = {}
        for path in sorted(self.directory.parent.rglob("*")):
            if path.name == "names.lock":
                continue
            facts = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            found[str(path)] = (facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_mode, content)
        return found

    def picture(self) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
        """The files, and what libvirt was told."""
        return self.files(), list(self.connection.calls)

    def image(self, name: str, *options: object, size: object = "1M", fmt: str = "qcow2") -> Path:
        """An image in the pool that libvirt knows."""
        path = self.directory / name
        argv = ["qemu-img", "create", "-q", "-f", fmt, *map(str, options), str(path), str(size)]
        subprocess.run(argv, check=True)
        self.connection.refresh(self.connection.pool("default"))
        self.connection.calls.clear()
        return path
