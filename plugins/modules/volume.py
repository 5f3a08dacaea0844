#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: volume
short_description: Create and delete volumes in libvirt storage pools
version_added: 0.1.0
description:
  - Makes sure that a volume is there, blank, from a template, or from a snapshot, or that it is gone.
  - A new volume appears under its name only when it is complete and on stable storage.
  - Deleting refuses whatever a domain, another volume or another process still uses. There is no force.
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
  state:
    description:
      - V(present) creates the volume, or grows it when it is smaller than O(size).
      - V(absent) deletes it.
    type: str
    choices: [present, absent]
    default: present
  size:
    description:
      - Capacity of the volume, in bytes or with a unit. C(K M G T P) and C(KiB MiB GiB TiB PiB) are powers of 1024,
        C(KB MB GB TB PB) powers of 1000, for example V(20G), V(1.5 GiB) or V(500 MB).
      - Needed for a blank volume. With O(template) or O(snapshot) it may be larger than theirs, never smaller.
      - It is a minimum. A volume that exists and is smaller is grown, online when a running domain uses it;
        a larger one is left as it is.
    type: str
  template:
    description:
      - Start from this volume of O(template_pool), or from the image at this absolute path on the hypervisor.
    type: str
  template_pool:
    description:
      - Pool of the O(template). Without it, O(pool).
    type: str
  clone_mode:
    description:
      - V(backing) makes a qcow2 overlay that reads unwritten data from the template (copy on write), V(full) an
        independent copy.
      - Without it, V(backing) for qcow2 and V(full) for raw volumes.
    type: str
    choices: [backing, full]
  snapshot:
    description:
      - Start from this snapshot of O(snapshot_volume), as an independent volume with the data of that moment.
      - An internal qcow2 snapshot by name or id, else a libvirt snapshot of a domain that uses the volume,
        whose frozen layer is copied. It works while the domain runs and never changes the source.
      - A qcow2 copy is checked (C(qemu-img check)) before it gets its name.
    type: str
  snapshot_volume:
    description:
      - The volume that has the O(snapshot).
    type: str
  snapshot_pool:
    description:
      - Pool of the O(snapshot_volume). Without it, O(pool).
    type: str
  wipe:
    description:
      - With O(state=absent), overwrite the volume's data with zeros before its space is given back.
      - Copies that the storage itself keeps (reflinks, snapshots of the file system, flash) are out of reach.
      - A volume whose file has further names (hard links) is refused with V(unsupported), since its data would be gone under all of them.
    type: bool
    default: false
seealso:
  - module: hypervisor.storage.volume_info
"""

EXAMPLES = r"""
- name: A blank volume of 20 GiB
  hypervisor.storage.volume:
    name: data1
    size: 20G

- name: Three disks from one template, copy on write, each 40 GiB
  hypervisor.storage.volume:
    name: [web1, web2, web3]
    template: debian-12.qcow2
    template_pool: templates
    size: 40G

- name: An independent raw disk from an image file, with all its space reserved
  hypervisor.storage.volume:
    name: db1.raw
    format: raw
    template: /srv/images/debian-12.qcow2
    clone_mode: full

- name: Yesterday's data beside the damaged disk
  hypervisor.storage.volume:
    name: web1-restored
    snapshot: before-upgrade
    snapshot_volume: web1

- name: Wipe and delete, unless somebody still uses it
  hypervisor.storage.volume:
    name: web1-restored
    state: absent
    wipe: true
"""

RETURN = r"""
volumes:
  description: The volumes, in the order of the names; those that are absent are left out.
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
  description: The one volume when a single name was given, null when it is absent.
  returned: success, with a single name
  type: dict
  contains: *volume
actions:
  description: What was done, or in check mode would be done, in order and in words.
  returned: success, and on a failure half-way what was done until then
  type: list
  elements: str
  sample:
    - "create blank qcow2 volume 'data1' of 21474836480 bytes (20 GiB) in pool 'default'"
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
dependents:
  description: The volumes that need this one as a backing or data file, each as in RV(volumes[].dependents).
  returned: failure because the volume has dependents
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

from ansible_collections.hypervisor.storage.plugins.module_utils import _args, _ensure_volume, _runner


def main():
    _runner.run_lifecycle(
        argument_spec=dict(
            _args.connection_options(),
            **_args.name_options(),
            **_args.pool_options(),
            **_args.creation_options(),
            state=dict(type="str", choices=["present", "absent"], default="present"),
            size=dict(type="str"),
            template=dict(type="str"),
            template_pool=dict(type="str"),
            clone_mode=dict(type="str", choices=["backing", "full"]),
            snapshot=dict(type="str"),
            snapshot_volume=dict(type="str"),
            snapshot_pool=dict(type="str"),
            wipe=dict(type="bool", default=False),
        ),
        make_task=_ensure_volume.VolumeTask,
    )


if __name__ == "__main__":
    main()
