#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: volume_resize
short_description: Grow volumes of libvirt storage pools, online too
version_added: 0.1.0
description:
  - Grows volumes to a size. They never shrink.
  - A volume that a running (or paused) domain has as its disk is grown through that domain, so that its guest sees the
    new size at once. Otherwise it is grown on storage.
  - The guest's partitions and file systems are not touched; growing them is the next step, in the guest.
  - A volume that several running domains share, that a running domain has read-only, or that is only a backing layer
    of a running domain is refused, since not all who use it would see the new size.
  - A volume that QEMU encrypts, as LUKS or within qcow2, grows while its domain, which has the key, runs.
author:
  - The hypervisor.storage contributors (@hypervisor-storage)
extends_documentation_fragment:
  - hypervisor.storage.common
  - hypervisor.storage.common.name
  - hypervisor.storage.common.pool
  - hypervisor.storage.common.attributes
options:
  size:
    description:
      - The capacity wanted, in bytes or with a unit. C(K M G T P) and C(KiB MiB GiB TiB PiB) are powers of 1024,
        C(KB MB GB TB PB) powers of 1000.
      - Less than the volume has fails with RV(ignore:reason=shrink_refused), the same changes nothing.
    type: str
    required: true
  preallocation:
    description:
      - What to reserve of the added space. V(off) reserves nothing, V(falloc) all without writing it, V(full) writes all.
      - A raw volume that grows under its running domain is reserved as with V(falloc) also when V(full) is asked for.
      - Without it, V(falloc) for raw and V(off) for qcow2 volumes.
    type: str
    choices: ['off', falloc, full]
seealso:
  - module: hypervisor.storage.volume
"""

EXAMPLES = r"""
- name: Grow a disk to 40 GiB, whether its domain runs or not
  hypervisor.storage.volume_resize:
    name: web1
    size: 40G

- name: Grow two raw disks, reserving nothing
  hypervisor.storage.volume_resize:
    name: [db1.raw, db2.raw]
    pool: databases
    size: 1.5 TiB
    preallocation: 'off'
"""

RETURN = r"""
msg:
  description: What is left to do in the guest.
  returned: when a volume was grown
  type: str
  sample: Once the volume is larger, the partition and the file system inside the guest are still to be grown.
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
    - "grow volume 'web1' in pool 'default' from 21474836480 to 42949672960 bytes (40 GiB), online through web (vda)"
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

from ansible_collections.hypervisor.storage.plugins.module_utils import _args, _resize_volume, _runner


def main():
    _runner.run_lifecycle(
        argument_spec=dict(
            _args.connection_options(),
            **_args.name_options(),
            **_args.pool_options(),
            size=dict(type="str", required=True),
            preallocation=dict(type="str", choices=["off", "falloc", "full"]),
        ),
        make_task=_resize_volume.ResizeTask,
    )


if __name__ == "__main__":
    main()
