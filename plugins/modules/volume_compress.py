#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: volume_compress
short_description: Give back space that qcow2 volumes take for nothing
version_added: 0.1.0
description:
  - Gives space back that a volume's file takes on storage without need. The capacity stays, and so does what the guest reads.
  - By default this works in place and needs no free space, so that a full pool can be compressed. Backing file, internal
    snapshots, owner, mode, labels and extended attributes stay as they are.
  - Only qcow2 volumes that are files and that no domain has attached. The base of overlays is worked on as long as no
    running domain uses any of them. The volume is locked against every other process meanwhile.
  - A process that is killed at any moment leaves the volume whole. A second run right after changes nothing.
author:
  - The hypervisor.storage contributors (@hypervisor-storage)
requirements:
  - virt-sparsify (package C(guestfs-tools) on Debian, Fedora and RHEL, C(libguestfs-tools) on Ubuntu) to trim
extends_documentation_fragment:
  - hypervisor.storage.common
  - hypervisor.storage.common.name
  - hypervisor.storage.common.pool
  - hypervisor.storage.common.attributes
options:
  method:
    description:
      - V(zeros) gives back blocks that hold only zeros, as holes in the volume's file.
      - V(trim) also gives back what the guest's file systems, swap and LVM don't use, through libguestfs. It starts a small
        virtual machine twice, first to find out what a trim would bring without touching the volume. Files stay; what
        lay in unused blocks is gone. A volume that others have as their backing file is refused.
      - V(auto) is V(trim) where that is possible, else V(zeros), with a remark in RV(actions).
    type: str
    choices: [auto, zeros, trim]
    default: auto
  compression:
    description:
      - V(zlib) and V(zstd) rewrite the volume with compressed clusters, through a second file beside it that takes its place
        when it is complete and compared. That needs free space for all that isn't zeros, as if nothing of it could be compressed.
      - What that brings is told by samples, unless it is a near thing; check mode then says about how much.
      - Guests read compressed clusters more slowly; what they write is no longer compressed. Good for templates and archives.
      - V(zstd) is about eight times as fast as V(zlib), and needs QEMU 5.1 and qcow2 compat 1.1.
      - Volumes with internal snapshots or bitmaps are refused, since a rewrite would lose them.
    type: str
    choices: [none, zlib, zstd]
    default: none
  min_reclaim:
    description:
      - A volume from which less than this can be reclaimed is left alone, in bytes or with a unit, for example V(100M).
    type: str
    default: 1M
seealso:
  - module: hypervisor.storage.volume_info
  - module: hypervisor.storage.volume_clone
"""

EXAMPLES = r"""
- name: Give back what a stopped domain's disk no longer needs
  hypervisor.storage.volume_compress:
    name: web1

- name: What would that bring?
  hypervisor.storage.volume_compress:
    name: [web1, web2]
    method: zeros
  check_mode: true
  register: outlook

- name: Make a template small, if that saves at least 100 MiB
  hypervisor.storage.volume_compress:
    name: debian-12.qcow2
    pool: templates
    compression: zstd
    min_reclaim: 100M
"""

RETURN = r"""
allocation_before:
  description: Bytes on storage before, of all named volumes together.
  returned: success
  type: int
  sample: 21474836480
allocation_after:
  description: Bytes on storage afterwards, of all named volumes together. In check mode, what is expected.
  returned: success
  type: int
  sample: 4294967296
reclaimed:
  description:
    - The difference of the two.
    - In check mode it is exact to the block for zeros and an estimate from samples for O(compression).
  returned: success
  type: int
  sample: 17179869184
savings:
  description: The same for each volume, in the order of the names.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the volume.
      type: str
    method:
      description: V(trim) where the guest's file systems were looked into, V(zeros) where only zeros counted.
      type: str
    compression:
      description: V(zlib) or V(zstd) when the volume was rewritten with it, V(none) when it was worked on in place or left.
      type: str
    allocation_before:
      description: Bytes on storage before.
      type: int
    allocation_after:
      description: Bytes on storage afterwards.
      type: int
    reclaimed:
      description: The difference of the two.
      type: int
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
    - "compress volume 'web1' in pool 'default': give back its blocks of zeros; 17179869184 bytes (16 GiB) less"
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

from ansible_collections.hypervisor.storage.plugins.module_utils import _args, _compress_volume, _runner


def main():
    _runner.run_lifecycle(
        argument_spec=dict(
            _args.connection_options(),
            **_args.name_options(),
            **_args.pool_options(),
            method=dict(type="str", choices=["auto", "zeros", "trim"], default="auto"),
            compression=dict(type="str", choices=["none", "zlib", "zstd"], default="none"),
            min_reclaim=dict(type="str", default="1M"),
        ),
        make_task=_compress_volume.CompressTask,
    )


if __name__ == "__main__":
    main()
