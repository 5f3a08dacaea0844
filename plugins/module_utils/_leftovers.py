# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What killed runs left in a pool's directory: files in the making, backup jobs that write to them, frozen guests."""

from __future__ import annotations

from . import _running, _staging, _xml
from ._inventory import Host
from ._libvirt import Connection


def clear(host: Host, directory: str) -> None:
    """Remove what killed runs left; backup jobs that still write into it are ended before."""
    orphans = _staging.orphans(directory)
    if orphans:
        for path in orphans:
            thaw_orphan(host.connection, path)
        for domain in host.connection.domains():
            if domain.live_xml is not None:
                abort_orphan(host.connection, domain.uuid)
    _staging.sweep(directory)


def abort_orphan(connection: Connection, domain_uuid: str) -> None:
    """End a backup job that writes into what a killed run left (and that run's guardian could not end)."""
    document = _running.backup_job(connection, domain_uuid)
    if document is None:
        return
    targets = _xml.backup_targets(document)
    if targets and all(_staging.is_abandoned(path) for path in targets):
        _running.abort_job(connection, domain_uuid)
        _running.thaw(connection, domain_uuid)


def thaw_orphan(connection: Connection, path: str) -> None:
    """Thaw the guest that a killed run left frozen, should its guardian have been killed as well."""
    domain_uuid = _staging.read_frozen(path)
    if domain_uuid is not None:
        _running.thaw(connection, domain_uuid)
