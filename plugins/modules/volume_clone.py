#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: volume_clone
short_description: Copy volumes of libvirt storage pools, also of running domains
version_added: 0.1.0
description:
  - Makes a full, independent copy of a volume, in the same or another pool. Its backing chain is flattened, and
    deleting the source later takes nothing from the copy.
  - Where source and copy share a file system that can share extents (XFS with reflink, Btrfs), the copy is made at once
    and shares them until one side writes.
  - A volume that a running domain writes to is copied as of one moment, through libvirt's backup job. File systems in
    the guest are frozen around its start when the guest agent answers.
  - Internal snapshots are not copied; a warning says so. A copy that exists is never overwritten.
  - A volume that QEMU encrypts, as LUKS or within qcow2, is refused, since only its own domain has the key.
author:
  - The hypervisor.storage contributors (@hypervisor-storage)
extends_documentation_fragment:
  - hypervisor.storage.common
  - hypervisor.storage.common.name
  - hypervisor.storage.common.pool
  - hypervisor.storage.common.creation
  - hypervisor.storage.common.rights
  - hypervisor.storage.common.attributes
options:
  source:
    description:
      - Name of the volume to copy.
    type: str
    required: true
  source_pool:
    description:
      - Pool of the O(source). Without it, O(pool).
    type: str
  name:
    description:
      - Name of the copy, or a list of names for several copies.
  pool:
    description:
      - Pool that the copy is made in. It must be active.
  format:
    description:
      - Format of the copy. Without it, that of the source.
  preallocation:
    description:
      - What to reserve on storage for the copy.
      - Without it, V(off), so that what is sparse stays sparse.
  cluster_size:
    description:
      - Cluster size of a qcow2 copy. Without it, that of a qcow2 source.
  size:
    description:
      - Capacity of the copy, in bytes or with a unit, at least that of the source. Without it, that of the source.
    type: str
  verify:
    description:
      - Compare the copy with the source before it gets its name. A copy of a running domain's disk, which has moved on
        meanwhile, is checked for its own soundness instead; a raw one has nothing to check, and a warning says so.
    type: bool
    default: false
  consistency:
    description:
      - V(auto) copies a volume that stands still as it is, and one that a running domain writes to through a backup job.
      - V(offline) refuses a volume that a running domain writes to.
      - V(live) does as V(auto); it says that the domain is expected to run.
    type: str
    choices: [auto, offline, live]
    default: auto
seealso:
  - module: hypervisor.storage.volume
"""

EXAMPLES = r"""
- name: Copy a disk, whether its domain runs or not
  hypervisor.storage.volume_clone:
    source: web1
    name: web1-copy

- name: A verified copy in the backup pool
  hypervisor.storage.volume_clone:
    source: db1
    name: "db1-{{ now().strftime('%Y-%m-%d') }}"
    pool: backup
    source_pool: default
    verify: true

- name: From raw to qcow2, and larger
  hypervisor.storage.volume_clone:
    source: legacy.raw
    name: legacy.qcow2
    format: qcow2
    size: 100G
"""

RETURN = r"""
consistency:
  description:
    - What moment the copy is of. V(offline) when nothing wrote to the source, V(filesystem) when the guest's file systems
      were frozen at that moment, V(crash) when it is as after a power cut.
    - In check mode it is left out for a running domain's disk, since only the real run asks the guest agent.
  returned: when a copy was made
  type: str
  sample: filesystem
volumes:
  description: The volumes, in the order of the names.
  returned: success
  type: list
  elements: dict
  contains: &volume
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
volume:
  description: The one volume when a single name was given.
  returned: success, with a single name
  type: dict
  contains: *volume
actions:
  description: What was done, or in check mode would be done, in order and in words.
  returned: success, and on a failure half-way what was done until then
  type: list
  elements: str
  sample:
    - "create qcow2 volume 'web1-copy' of 21474836480 bytes (20 GiB) in pool 'backup' as a full copy of volume 'web1' of
      pool 'default' (backup job of domain 'web')"
reason:
  description: Why it failed, as a stable code, for example V(volume_in_use) or V(insufficient_space).
  returned: failure
  type: str
  sample: volume_in_use
attachments:
  description: The uses by domains that stand in the way, each as in RV(volumes[].attachments).
  returned: failure because domains use the volume
  type: list
  elements: dict
required:
  description: Bytes that are needed.
  returned: failure for want of space
  type: int
  sample: 21474836480
available:
  description: Bytes that are free in the pool.
  returned: failure for want of space
  type: int
  sample: 1073741824
done:
  description: Names of the volumes that were done before a failure half-way.
  returned: failure half-way
  type: list
  elements: str
not_done:
  description: Names of the volumes that were not done because of a failure half-way.
  returned: failure half-way
  type: list
  elements: str
"""

from ansible_collections.hypervisor.storage.plugins.module_utils import _args, _clone_volume, _runner


def main():
    _runner.run_lifecycle(
        argument_spec=dict(
            _args.connection_options(),
            **_args.name_options(),
            **_args.pool_options(),
            **_args.creation_options(),
            source=dict(type="str", required=True),
            source_pool=dict(type="str"),
            size=dict(type="str"),
            verify=dict(type="bool", default=False),
            consistency=dict(type="str", choices=["auto", "offline", "live"], default="auto"),
        ),
        make_task=_clone_volume.CloneTask,
    )


if __name__ == "__main__":
    main()
