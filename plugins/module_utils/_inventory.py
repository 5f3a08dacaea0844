# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is there: pools, volumes, chains, attachments and dependents of one host, looked up once per call.

For pools made of files the directory itself is the truth, so that nothing depends on how stale libvirt's
view is; for the others libvirt is asked.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from . import _chains, _directory, _domains, _formats, _xml
from ._errors import ConnectionFailed, PoolInactive, Unsupported
from ._image_header import ImageHeader, raw_header
from ._libvirt import Connection
from ._model import MANAGED_POOL_TYPES, RENAMED_POOL_TYPES, Attachment, Dependent, Ident, Pool
from ._named_tuple import NamedTuple
from ._names import STAGING_PREFIX

_RBD_DEVICES = "/dev/rbd/"
if TYPE_CHECKING:
    from ._ceph import CephView

NOT_AN_IMAGE = "it is neither a file nor a block device"


class Image(NamedTuple):
    """A volume or file as the collection is going to treat it: facts, settled format, chain below."""

    name: str
    path: str
    ident: Ident
    pool: Pool | None
    type: str
    format: str
    capacity: int
    allocation: int
    header: ImageHeader
    chain: _chains.Chain
    is_link: bool
    distrust: str | None  # why its content must not be read as an image
    failure: OSError | None = None  # what the operating system refused, so that nothing can be told of it
    key: str | None = None  # libvirt's, where it isn't the path

    @property
    def backing(self) -> _chains.Layer | None:
        return self.chain.layers[0] if self.chain.layers else None


class Host:
    """One hypervisor during one call; everything is looked up when first needed, and kept until forget()."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._scans: dict[str, list[_directory.FileFacts]] = {}
        self._fresh: set[str] = set()  # pools without files that libvirt has read anew
        self._ceph: CephView | None = None
        self._looked: dict[str, _directory.FileFacts | None] = {}  # what was found at the paths of images
        self.forget()

    def forget(self) -> None:
        """Drop what was seen, after a change or a wait."""
        self._pools: list[Pool] | None = None
        self._domain_map: _domains.DomainMap | None = None
        self._children: dict[Ident, set[tuple[Ident, Dependent | None]]] | None = None
        self._unread: list[tuple[Ident | None, str]] = []
        self._homes: dict[Ident, tuple[Pool, str]] | None = None
        self._scans.clear()
        self._unlisted: dict[str, OSError] = {}
        self._looked.clear()
        self._fresh.clear()
        if self._ceph is not None:
            self._ceph.forget()
        self._reader = _chains.ChainReader()

    def seen(self, path: str) -> Ident | None:
        """What was found at a path when a decision looked at it."""
        facts = self._looked.get(path)
        return facts.ident if facts is not None else None

    def stands_still(self, path: str, fd: int) -> bool:
        """Whether the image open as ``fd`` has the content that a decision saw at its path, if one looked there."""
        facts = self._looked.get(path)
        return facts is None or facts.written == _directory.last_write(os.fstat(fd))

    def expect_change(self, path: str) -> None:
        """An image is changed by ourselves: what was seen of it before is no measure any more."""
        self._looked.pop(path, None)

    def is_outdated(self) -> bool:
        """Whether an image that was looked at is gone, exchanged or new by now: then a refusal may tell of what never was."""
        scanned = {os.path.realpath(path) for path in self._scans}
        looked = [(path, facts.ident if facts is not None else None) for path, facts in self._looked.items()]
        for path, ident in [*looked, *self._reader.looked()]:
            now = _directory.identify_loosely(path)
            if (None if now[0] == "path" else now) != ident:
                return True
            # It is as it was seen, but the look at its whole directory was at another moment.
            unlisted = ident is not None and self._homes is not None and ident not in self._homes
            if unlisted and os.path.dirname(os.path.realpath(path)) in scanned and not os.path.islink(path):
                return True
        return False

    def pools(self) -> list[Pool]:
        """All active pools, sorted by name."""
        if self._pools is None:
            self._pools = self.connection.active_pools()
        return self._pools

    def pool(self, name: str) -> Pool:
        """An active pool; raises PoolNotFound, PoolInactive, or Unsupported when its files aren't within reach."""
        pool = next((pool for pool in self.pools() if pool.name == name), None) or self.connection.pool(name)
        self.assert_within_reach(pool)
        return pool

    def assert_within_reach(self, pool: Pool) -> None:
        """Make sure that a pool's directory can be read here; raises PoolInactive or Unsupported."""
        if not pool.stores_files or pool.path is None:
            return
        try:
            os.scandir(pool.path).close()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise PoolInactive(
                f"libvirt has storage pool {pool.name!r} as active, but its directory {pool.path!r} is not there. Was its file "
                "system unmounted, or the directory moved away? Put it back, then run again.",
                pool=pool.name,
            ) from error
        except OSError as error:
            raise Unsupported(
                f"The directory {pool.path!r} of pool {pool.name!r} can't be read: {error.strerror}. "
                "Run the task on the hypervisor itself, as a user who may read the pool (become: true).",
                pool=pool.name,
            ) from error

    def assert_local(self) -> None:
        """Refuse to work on files of a daemon that may run elsewhere; raises Unsupported."""
        if self.connection.is_remote():
            raise Unsupported(
                f"The uri {self.connection.uri!r} leads over the network, but volumes are made and checked on the "
                "hypervisor itself. Run the task on the hypervisor (in inventory, or with delegate_to) with a local uri "
                "such as qemu:///system."
            )

    def assert_may_change(self) -> None:
        """Refuse a connection through which nothing can be changed; raises ConnectionFailed, or as assert_local()."""
        self.assert_local()
        if self.connection.is_read_only():
            raise ConnectionFailed(
                f"The uri {self.connection.uri!r} leads to libvirt's socket for those who may only look. Leave the socket out of it, or "
                "name the one without '-ro', and run the task as a user who may use that (become: true).",
                uri=self.connection.uri,
            )

    def changeable_pool(self, name: str) -> Pool:
        """An active pool whose volumes can be made and grown, with the steps that their sizes go in.

        Raises as pool(), and Unsupported for pools that only show what is there.
        """
        pool = self.pool(name)
        if pool.stores_files:
            return pool
        if pool.type not in MANAGED_POOL_TYPES:
            raise Unsupported(
                f"Pool {pool.name!r} is of type {pool.type}, whose volumes this collection only lists: they are made, grown and "
                f"deleted where they come from. Use a pool that is a directory, or of type {', '.join(sorted(MANAGED_POOL_TYPES))}.",
                pool=pool.name,
            )
        if pool.source is None or pool.type == "rbd":
            return pool
        from ._pool_tools import granularity

        return pool._replace(granularity=granularity(pool.type, pool.source.name))

    def free_bytes(self, pool: Pool) -> int:
        """Bytes that can still be written to a pool."""
        if pool.stores_files and pool.path is not None:
            return _directory.free_bytes(pool.path)
        return self.described_pool(pool).available

    def described_pool(self, pool: Pool) -> Pool:
        """The pool with the sizes of now."""
        if not pool.stores_files or pool.path is None:
            self._freshen(pool)
            return self.connection.pool(pool.name)
        try:
            capacity, allocation, available = _directory.usage_bytes(pool.path)
        except OSError:
            return pool
        return Pool(pool.name, pool.uuid, pool.type, pool.path, pool.active, capacity, allocation, available)

    # -- images ------------------------------------------------------------------------------------

    def image(self, pool: Pool, name: str) -> Image | None:
        """A pool's volume by name, or ``None``."""
        if pool.stores_files and pool.path is not None:
            facts = self._look_at(os.path.join(pool.path, name))
            return self._image_of(facts, pool) if facts is not None else None
        self._freshen(pool)
        definition = self.connection.volume(pool, name)
        return self._image_of_definition(definition, pool) if definition is not None else None

    def _freshen(self, pool: Pool) -> None:
        """Let libvirt see what others did to a pool without files: it remembers only what it did itself."""
        if pool.type in MANAGED_POOL_TYPES and pool.uuid not in self._fresh:
            self.refresh(pool)
            self._fresh.add(pool.uuid)

    def refresh(self, pool: Pool) -> None:
        """Let libvirt read a pool anew, while no run of ours renames a volume that is no file."""
        from . import _locks, _pool_changes  # here, since most runs need neither

        with contextlib.ExitStack() as held:
            if pool.type in RENAMED_POOL_TYPES:
                held.enter_context(_locks.hold_list(pool.place))
            _pool_changes.refresh(self.connection, pool)

    def has_hidden(self, pool: Pool) -> bool:
        """Whether a pool without files holds volumes in the making, or what a killed run left of some."""
        self._freshen(pool)
        return any(definition.name.startswith(STAGING_PREFIX) for definition in self.connection.volumes(pool))

    def images(self, pool: Pool) -> list[Image]:
        """All volumes of a pool that are disk images, sorted by name."""
        if not pool.stores_files:
            self._freshen(pool)
            found = [
                self._image_of_definition(definition, pool)
                for definition in self.connection.volumes(pool)
                if _is_text(definition.name)
            ]
        else:
            found = [
                self._image_of(facts, pool, in_bulk=True)
                for facts in self.scan(pool)
                if facts.kind in ("file", "block") and _is_text(facts.name)
            ]
        return sorted(found, key=lambda image: image.name)

    def image_at(self, path: str) -> Image | None:
        """The image at an absolute path: a pool's volume where one lies there, else the bare file."""
        facts = None if _directory.is_pseudo(path) else self._look_at(path)
        if facts is None:
            return None
        home = self.home(facts.ident)
        if home is not None:
            pool, name = home
            return self.image(pool, name)
        return self._image_of(facts, None)

    def _look_at(self, path: str) -> _directory.FileFacts | None:
        facts = _directory.look_at(path)
        self._looked.setdefault(path, facts)  # the first look is the one that decisions begin with
        return facts

    def home(self, ident: Ident) -> tuple[Pool, str] | None:
        """The active pool and volume name under which a piece of storage really lies (links don't count)."""
        if ident[0] == "network":
            return self.ceph.home(str(ident[1]), self.pools())
        if self._homes is None:
            self._homes = {}
            for pool in self.pools():
                if pool.stores_files:
                    for facts in self.scan(pool):
                        if not facts.is_link:
                            self._homes.setdefault(facts.ident, (pool, facts.name))
                elif pool.volume_type == "block":
                    for definition in self.connection.volumes(pool):
                        self._homes.setdefault(_directory.identify_loosely(definition.path), (pool, definition.name))
        return self._homes.get(ident)

    @property
    def ceph(self) -> CephView:
        """What Ceph clusters tell of their images beside libvirt."""
        if self._ceph is None:
            from ._ceph import CephView

            self._ceph = CephView(self.connection)
        return self._ceph

    def scan(self, pool: Pool) -> list[_directory.FileFacts]:
        """Facts of all files of a pool's directory; one that can't be listed is empty, and remembered as such."""
        if pool.path is None:
            return []
        if pool.path not in self._scans:
            try:
                self._scans[pool.path] = _directory.scan_directory(pool.path)
            except (FileNotFoundError, NotADirectoryError):
                self._scans[pool.path] = []
            except OSError as error:
                self._scans[pool.path] = []
                self._unlisted[pool.path] = error
        return self._scans[pool.path]

    def look_again_at(self, pool: Pool) -> None:
        """Forget what a pool's directory held."""
        self._scans.pop(pool.path or "", None)

    def _image_of(self, facts: _directory.FileFacts, pool: Pool | None, *, in_bulk: bool = False) -> Image:
        header = facts.header or raw_header(facts.size)
        settled = self._settle(facts, pool, in_bulk=in_bulk)
        if settled.format == "raw":
            # The guest may have encrypted its disk as a whole; its content can't be read without the key.
            header = raw_header(facts.size)._replace(encryption="luks" if header.format == "luks" else None)
        chain = self._reader.below(facts.path, header, facts.ident) if settled.format == "qcow2" else _chains.Chain()
        distrust = settled.conflict or facts.trouble or header.problem
        if facts.kind not in ("file", "block"):
            distrust = NOT_AN_IMAGE
        return Image(
            name=facts.name,
            path=facts.path,
            ident=facts.ident,
            pool=pool,
            type="block" if facts.kind == "block" else "file",
            format=settled.format,
            capacity=header.capacity,
            allocation=facts.allocation,
            header=header,
            chain=chain,
            is_link=facts.is_link,
            distrust=distrust,
            failure=facts.failure,
        )

    def _settle(self, facts: _directory.FileFacts, pool: Pool | None, *, in_bulk: bool) -> _formats.Settled:
        probed = facts.header.format if facts.header is not None else "raw"
        stated = self.domains().formats(facts.ident)
        defined = None
        if probed != "raw" and not stated and facts.mark is None and pool is not None and not facts.is_link:
            # Nobody but libvirt can say whether this was made as what it looks like. A long list asks only about
            # images that claim something outside the pools: a call for each volume would take longer than all else.
            asked = not in_bulk or self._reaches_out(facts)
            definition = self.connection.volume(pool, facts.name) if asked else None
            defined = definition.format if definition is not None else None
            if definition is not None and definition.encrypted and defined == "raw" and probed == "luks":
                defined = "luks"  # libvirt's way to say so; the capacity is without the header then
        return _formats.settle(probed=probed, stated=stated, marked=facts.mark, defined=defined)

    def _reaches_out(self, facts: _directory.FileFacts) -> bool:
        if facts.header is None or facts.header.format != "qcow2":
            return True
        chain = self._reader.below(facts.path, facts.header, facts.ident)
        return chain.trouble is not None or any(self.home(layer.ident) is None for layer in chain.layers)

    def _image_of_definition(self, definition: _xml.VolumeDef, pool: Pool) -> Image:
        header = raw_header(definition.capacity)
        ident: Ident = ("network", definition.key, "")
        if pool.volume_type == "block":
            ident = _directory.identify_loosely(definition.path)
        layers: tuple[_chains.Layer, ...] = ()
        if definition.backing_path is not None:
            below = _directory.identify_loosely(definition.backing_path)
            layers = (_chains.Layer(definition.backing_path, below, definition.backing_format),)
        if pool.type == "rbd":
            layers = self.ceph.parents(definition.name, pool)
        return Image(
            name=definition.name,
            path=definition.path,
            ident=ident,
            pool=pool,
            type=pool.volume_type,
            format=definition.format or "raw",
            capacity=definition.capacity,
            allocation=definition.allocation,
            header=header,
            chain=_chains.Chain(layers),
            is_link=False,
            distrust=None,
            key=definition.key,
        )

    def chain_below(self, path: str, header: ImageHeader, ident: Ident) -> _chains.Chain:
        """The chain below an image as the decision saw it."""
        return self._reader.below(path, header, ident)

    # -- uses --------------------------------------------------------------------------------------

    def domains(self) -> _domains.DomainMap:
        """The map of all domains' storage."""
        if self._domain_map is None:
            self._domain_map = _domains.build(self.connection.domains(), locate=self.locate, below=self._below)
        return self._domain_map

    def disk_of(self, domain_uuid: str, target: str | None) -> Ident | None:
        """The storage that a running domain has as this disk by now, whatever was seen before."""
        for domain in self.connection.domains():
            if domain.uuid == domain_uuid and domain.live_xml is not None:
                sources = [disk.source for disk in _xml.parse_domain_disks(domain.live_xml) if disk.target == target]
                place = self.locate(sources[0]) if sources else None
                return place[0] if place is not None else None
        return None

    def attachments(self, image: Image) -> tuple[Attachment, ...]:
        """Every use of an image by a domain of this host."""
        return self.domains().attachments(image.ident)

    def dependents(self, ident: Ident) -> tuple[Dependent, ...]:
        """All volumes of active pools whose backing chain includes a piece of storage, sorted."""
        if ident[0] == "network":
            return self.ceph.dependents(ident, self.pools())
        if self._children is None:
            self._children = self._map_children()
        found: dict[tuple[str, str], Dependent] = {}
        queue, seen = [ident], {ident}
        while queue:
            for child, dependent in self._children.get(queue.pop(), ()):
                if dependent is not None:
                    found[dependent.pool, dependent.name] = dependent
                if child not in seen:
                    seen.add(child)
                    queue.append(child)
        return tuple(found[key] for key in sorted(found))

    def unread(self, ident: Ident) -> str | None:
        """What of the active pools can't be read by now, so that it may be built on this piece of storage, or ``None``."""
        if self._children is None:
            self._children = self._map_children()
        return next((what for unread, what in self._unread if unread != ident), None)

    def _map_children(self) -> dict[Ident, set[tuple[Ident, Dependent | None]]]:
        """What lies right above each piece of storage, with the volume that it is if the step up starts a chain."""
        children: dict[Ident, set[tuple[Ident, Dependent | None]]] = {}
        self._unread = []
        for pool in self.pools():
            if pool.volume_type == "network":
                continue
            if pool.stores_files:
                # A link is no volume of its own: what it leads to is looked at where it lies.
                self._unread += [
                    (facts.ident, f"volume {facts.name!r} of pool {pool.name!r}: {facts.failure.strerror}")
                    for facts in self.scan(pool)
                    if facts.failure is not None and not facts.is_link
                ]
                overlays = [
                    (facts.ident, facts.name, facts.path, self._chain_of(facts))
                    for facts in self.scan(pool)
                    if facts.header is not None and _leads_on(facts.header) and _is_text(facts.name)
                ]
            else:
                overlays = [(i.ident, i.name, i.path, i.chain) for i in self.images(pool) if i.chain.layers]
            if pool.path in self._unlisted:
                self._unread.append((None, f"the directory {pool.path!r} of pool {pool.name!r}: {self._unlisted[pool.path].strerror}"))
            for ident, name, path, chain in overlays:
                above: tuple[Ident, Dependent | None] = (ident, Dependent(pool.name, name, path))
                for data in chain.data:
                    children.setdefault(data, set()).add(above)
                for layer in chain.layers:
                    children.setdefault(layer.ident, set()).add(above)
                    above = (layer.ident, None)
        return children

    def _chain_of(self, facts: _directory.FileFacts) -> _chains.Chain:
        """The chain that a file claims, unless it is known to be raw, so that its claim is a guest's."""
        header = facts.header
        if header is None or "raw" in self.domains().formats(facts.ident) or facts.mark == "raw":
            return _chains.Chain()
        return self._reader.below(facts.path, header, facts.ident)

    def locate(self, source: _xml.SourceRef) -> tuple[Ident, str] | None:
        """The storage behind a domain's source, as identity and path; ``None`` where it can't be told."""
        if source.kind == "volume":
            pool = next((pool for pool in self.pools() if pool.name == source.pool), None)
            if pool is None or source.volume is None:
                return None
            if pool.stores_files and pool.path is not None:
                path = os.path.join(pool.path, source.volume)
                return _directory.identify_loosely(path), path
            definition = self.connection.volume(pool, source.volume)
            if definition is None:
                return None
            if pool.volume_type == "network":
                return ("network", definition.key, ""), definition.path
            return _directory.identify_loosely(definition.path), definition.path
        if source.path is None:
            return None
        if source.kind == "network":
            return ("network", source.path, ""), source.path
        if source.path.startswith(_RBD_DEVICES):  # an image that the kernel has mapped, by udev's name for it
            return ("network", source.path[len(_RBD_DEVICES) :], ""), source.path
        return _directory.identify_loosely(source.path), source.path

    def _below(self, path: str, stated: str | None) -> Iterable[Ident]:
        if stated in (None, "raw") or not os.path.isabs(path):  # then what the content claims is the guest's word
            return ()
        facts = _directory.look_at(path)
        if facts is None or facts.header is None:
            return ()
        chain = self._reader.below(path, facts.header, facts.ident)
        return [*(layer.ident for layer in chain.layers), *chain.data]


def _leads_on(header: ImageHeader) -> bool:
    """Whether an image needs another file."""
    return header.backing_file is not None or header.data_file is not None


def _is_text(name: str) -> bool:
    """Whether a file name can be said in UTF-8, hence in libvirt's XML and in a result."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return not name.startswith(STAGING_PREFIX)
