#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: volume_info
short_description: List and describe volumes of libvirt storage pools
version_added: 0.1.0
description:
  - Lists the volumes of one, several or all active pools, with who uses them, what they are based on,
    what is based on them, and their internal snapshots.
  - What isn't found is an empty list, not a failure. It never changes anything.
author:
  - The hypervisor.storage contributors (@hypervisor-storage)
extends_documentation_fragment:
  - hypervisor.storage.common
  - hypervisor.storage.common.info_attributes
options:
  name:
    description:
      - The volume of exactly this name.
    type: str
  pool:
    description:
      - Pools to look in. A pool that is named must exist and be active.
      - Without it, all active pools; those that aren't active are left out with a warning.
    type: list
    elements: str
  pattern:
    description:
      - A shell glob when it has one of C(*?[), else part of the name in upper or lower case.
    type: str
  status:
    description:
      - Only volumes that at least one domain uses (V(attached)), or that none uses (V(available)).
    type: str
    choices: [attached, available]
  format:
    description:
      - Only volumes of this format, for example V(qcow2) or V(raw).
    type: str
seealso:
  - module: hypervisor.storage.volume
"""

EXAMPLES = r"""
- name: All volumes of all active pools
  hypervisor.storage.volume_info:

- name: One volume, with its snapshots and who uses it
  hypervisor.storage.volume_info:
    name: web1
    pool: default

- name: Volumes of the web servers that nobody uses
  hypervisor.storage.volume_info:
    pattern: web*
    status: available
  register: unused
"""

RETURN = r"""
volumes:
  description: The volumes, sorted by pool and name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name in its pool.
      type: str
      sample: web1
    uuid:
      description: UUIDv5 of the name in the namespace of the pool's UUID. libvirt's volumes have none of their own.
      type: str
      sample: 0c2b1c5e-5d6b-5a33-9d3c-1c9a3b1d8b0f
    key:
      description: libvirt's key of the volume.
      type: str
      sample: /var/lib/libvirt/images/web1
    path:
      description: Path on the hypervisor, or the network name.
      type: str
      sample: /var/lib/libvirt/images/web1
    pool:
      description: Name of the pool.
      type: str
      sample: default
    type:
      description: What the volume is on its hypervisor, V(file), V(block) or V(network).
      type: str
      sample: file
    format:
      description: Format of the image.
      type: str
      sample: qcow2
    capacity:
      description: Virtual size in bytes.
      type: int
      sample: 21474836480
    allocation:
      description: Bytes really used on storage.
      type: int
      sample: 200704
    status:
      description: V(attached) when at least one domain uses the volume, else V(available).
      type: str
      sample: available
    attachments:
      description: Every use by a domain, live or only defined, as a disk or as a backing layer of one.
      type: list
      elements: dict
      contains:
        domain:
          description: Name of the domain.
          type: str
        domain_uuid:
          description: UUID of the domain.
          type: str
        state:
          description: State of the domain, for example V(running), V(paused) or V(shutoff).
          type: str
        target:
          description: Device name in the domain, for example V(vda).
          type: str
        bus:
          description: Bus of the disk, for example V(virtio).
          type: str
        live:
          description: Whether the running domain has it now.
          type: bool
        readonly:
          description: Whether the domain can't write to it.
          type: bool
        via:
          description: V(disk) for a disk itself, V(backing) for a layer below one.
          type: str
    backing:
      description: The backing file, or null.
      type: dict
      contains:
        path:
          description: Path of the backing file.
          type: str
        format:
          description: Its format.
          type: str
        name:
          description: Its name as a volume, or null.
          type: str
        pool:
          description: Its pool, or null.
          type: str
        chain:
          description: Paths from the direct backing file to the base.
          type: list
          elements: str
    dependents:
      description: Volumes in any active pool whose backing chain includes this one.
      type: list
      elements: dict
      contains:
        pool:
          description: Pool of the dependent volume.
          type: str
        name:
          description: Its name.
          type: str
        path:
          description: Its path.
          type: str
    snapshots:
      description: Internal qcow2 snapshots.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the snapshot.
          type: str
        id:
          description: Its id in the image.
          type: str
        date:
          description: When it was taken, ISO 8601 in UTC.
          type: str
        vm_state_size:
          description: Bytes of saved memory in it.
          type: int
    encrypted:
      description: Whether the image is encrypted, in the qcow2 format or as LUKS.
      type: bool
    cluster_size:
      description: Cluster size in bytes of a qcow2 image, else null.
      type: int
      sample: 65536
    compat:
      description: Version of the qcow2 format, V(0.10) or V(1.1), else null.
      type: str
      sample: "1.1"
pools:
  description: The pools that were looked at.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the pool.
      type: str
      sample: default
    uuid:
      description: UUID of the pool.
      type: str
    type:
      description: libvirt's type of the pool, for example V(dir).
      type: str
      sample: dir
    path:
      description: Path of the pool on the hypervisor, or null.
      type: str
      sample: /var/lib/libvirt/images
    active:
      description: Whether it is active.
      type: bool
    capacity:
      description: Size of the storage in bytes.
      type: int
    allocation:
      description: Bytes in use.
      type: int
    available:
      description: Bytes free.
      type: int
reason:
  description: Why it failed, as a stable code, for example V(pool_not_found) or V(pool_inactive).
  returned: failure
  type: str
  sample: pool_inactive
"""

from ansible_collections.hypervisor.storage.plugins.module_utils import _args, _find_volumes, _runner


def main():
    _runner.run_lookup(
        argument_spec=dict(
            _args.connection_options(),
            name=dict(type="str"),
            pool=dict(type="list", elements="str"),
            pattern=dict(type="str"),
            status=dict(type="str", choices=["attached", "available"]),
            format=dict(type="str"),
        ),
        collect=_find_volumes.collect,
    )


if __name__ == "__main__":
    main()
