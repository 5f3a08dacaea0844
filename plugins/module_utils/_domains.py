# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The map from a piece of storage to the domains that use it, built once for all domains.

It counts live, persistent and saved definitions, every backing layer, and what domain snapshots still need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from . import _xml
from ._libvirt import DomainFacts
from ._model import Attachment, Ident
from ._named_tuple import NamedTuple

#: Finds the storage behind a source, as (identity, path); ``None`` when it can't be on this host.
Locate = Callable[[_xml.SourceRef], "tuple[Ident, str] | None"]
#: The identities below an image of this path and stated format.
Below = Callable[[str, "str | None"], Iterable[Ident]]


class SnapshotOfDomain(NamedTuple):
    """A domain snapshot together with the domain it belongs to."""

    domain: str
    snapshot: _xml.SnapshotDef


class DomainMap:
    """Attachments and stated formats by identity, and all domain snapshots."""

    def __init__(self) -> None:
        self._attachments: dict[Ident, dict[tuple[str, str | None], Attachment]] = {}
        self._formats: dict[Ident, set[str]] = {}
        self.snapshots: list[SnapshotOfDomain] = []

    def attachments(self, ident: Ident) -> tuple[Attachment, ...]:
        """Every use of one piece of storage, sorted by domain and target."""
        uses = self._attachments.get(ident, {}).values()
        return tuple(sorted(uses, key=lambda use: (use.domain, use.target or "")))

    def formats(self, ident: Ident) -> frozenset[str]:
        """The formats that domains state for it as a disk's top layer."""
        return frozenset(self._formats.get(ident, ()))

    def add(self, ident: Ident, use: Attachment, stated_format: str | None) -> None:
        """Note a use; of several by the same disk the strongest stays (a disk before a layer, live before not)."""
        uses = self._attachments.setdefault(ident, {})
        known = uses.get((use.domain_uuid, use.target))
        if known is None or _strength(use) > _strength(known):
            uses[use.domain_uuid, use.target] = use
        if stated_format is not None:
            self._formats.setdefault(ident, set()).add(stated_format)


def build(domains: Iterable[DomainFacts], *, locate: Locate, below: Below) -> DomainMap:
    """Read all domains' documents into a map."""
    found = DomainMap()
    for domain in domains:
        # A saved domain wakes up with the disks it went to sleep with, whatever its definition says by now.
        for document, live in ((domain.live_xml, True), (domain.persistent_xml, False), (domain.saved_xml, False)):
            if document is not None:
                for disk in _xml.parse_domain_disks(document):
                    _add_disk(found, domain, disk, live=live, snapshot=None, locate=locate, below=below)
        for document in domain.snapshot_xml:
            snapshot = _xml.parse_snapshot(document)
            found.snapshots.append(SnapshotOfDomain(domain.name, snapshot))
            for disk in snapshot.domain_disks:
                _add_disk(found, domain, disk, live=False, snapshot=snapshot.name, locate=locate, below=below)
            for overlay in snapshot.disks:
                if overlay.overlay is not None:
                    _add_source(
                        found, domain, overlay.overlay, target=overlay.target, snapshot=snapshot.name, locate=locate
                    )
    return found


def _add_disk(
    found: DomainMap,
    domain: DomainFacts,
    disk: _xml.DiskDef,
    *,
    live: bool,
    snapshot: str | None,
    locate: Locate,
    below: Below,
) -> None:
    def use(via: str, readonly: bool) -> Attachment:
        return Attachment(
            domain=domain.name,
            domain_uuid=domain.uuid,
            state=domain.state,
            target=disk.target,
            bus=disk.bus,
            live=live,
            readonly=readonly,
            via=via,
            snapshot=snapshot,
        )

    place = locate(disk.source)
    if place is not None:
        ident, path = place
        # A snapshot's documents tell what a disk was, not what it is: they neither attach nor state a format.
        stated = _stated_format(disk) if disk.is_disk and snapshot is None else None
        found.add(ident, use("disk" if snapshot is None else "backing", disk.readonly), stated)
        if disk.is_disk:
            for layer in below(path, disk.format):
                found.add(layer, use("backing", True), None)
    for ref in disk.layers:
        place = locate(ref)
        if place is not None:
            found.add(place[0], use("backing", True), None)
    for ref in disk.mirrors:
        place = locate(ref)
        if place is not None:
            found.add(place[0], use("disk", False), None)


def _stated_format(disk: _xml.DiskDef) -> str | None:
    """The format that a disk's file has: with LUKS around it, a disk that is called raw begins behind a header."""
    return "luks" if disk.encrypted and disk.format == "raw" else disk.format


def _add_source(
    found: DomainMap, domain: DomainFacts, source: _xml.SourceRef, *, target: str, snapshot: str, locate: Locate
) -> None:
    place = locate(source)
    if place is not None:
        use = Attachment(
            domain=domain.name,
            domain_uuid=domain.uuid,
            state=domain.state,
            target=target,
            bus=None,
            live=False,
            readonly=False,
            via="backing",
            snapshot=snapshot,
        )
        found.add(place[0], use, None)


def _strength(use: Attachment) -> tuple[bool, bool, bool, bool]:
    return (use.via == "disk", use.live, use.snapshot is None, not use.readonly)
