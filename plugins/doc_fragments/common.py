# -*- coding: utf-8 -*-
# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Option documentation shared by the modules; the specs are in module_utils/_args.py."""

from __future__ import annotations


class ModuleDocFragment:
    """Shared options; each attribute is a part that a module can extend."""

    DOCUMENTATION = r"""
options:
  uri:
    description:
      - The libvirt connection to the hypervisor.
      - It must lead to the host that the task runs on, since volumes are made and checked there.
      - Falls back to the environment variable E(LIBVIRT_DEFAULT_URI).
    type: str
    default: qemu:///system
requirements:
  - libvirt-python (package C(python3-libvirt)) on the hypervisor
  - qemu-img (package C(qemu-utils) on Debian and Ubuntu, C(qemu-img) elsewhere) on the hypervisor
  - Python >= 3.9 on the hypervisor
"""

    POOL = r"""
options:
  pool:
    description:
      - Name of the storage pool that holds the volume. It must be active.
    type: str
    default: default
"""

    NAME = r"""
options:
  name:
    description:
      - Name of the volume, or a list of names with the same wish for each.
      - Text is split on commas; give a name that holds a comma as a list.
      - A list is planned as a whole first. If one volume is refused, nothing is done to any.
    type: list
    elements: str
    required: true
"""

    RIGHTS = r"""
options:
  owner:
    description:
      - User (name or number) who owns the file of a new volume. Volumes that exist are left as they are,
        since libvirt changes owners whenever a domain starts or stops.
      - Without it, the user that the task runs as.
    type: str
  group:
    description:
      - Group (name or number) of the file of a new volume.
    type: str
  mode:
    description:
      - Mode of the file of a new volume in octal digits, best in quotes, for example V('0640').
      - Without it, V('0600').
    type: raw
"""

    CREATION = r"""
options:
  format:
    description:
      - Format of the volume.
      - Without it, V(qcow2) where the pool stores files, V(raw) elsewhere.
    type: str
    choices: [qcow2, raw]
  preallocation:
    description:
      - What to reserve on storage when the volume is made.
      - V(off) reserves nothing, V(metadata) writes all qcow2 metadata, V(falloc) reserves all space without
        writing it, V(full) writes all of it.
      - Without it, V(off) for qcow2 and V(falloc) for raw.
    type: str
    choices: ['off', metadata, falloc, full]
  cluster_size:
    description:
      - Cluster size of a new qcow2 volume, a power of two from 512 bytes to 2 MiB, for example V(64K).
    type: str
  overcommit:
    description:
      - Whether a thin volume may promise more than the pool has free now. It is allowed with a warning by default,
        and fails with RV(ignore:reason=insufficient_space) when V(false).
    type: bool
    default: true
"""

    ATTRIBUTES = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check mode, with the same checks and the same prediction as the real run.
    support: full
  diff_mode:
    description: Returns what was and what is (or would be), without volatile values.
    support: full
  async:
    description: Supports being used with the C(async) keyword.
    support: full
  platform:
    description: Target operating systems.
    support: full
    platforms: linux
  action_group:
    description: Use C(group/hypervisor.storage.storage) in C(module_defaults) to set defaults for all modules at once.
    support: full
    membership: [hypervisor.storage.storage]
"""

    INFO_ATTRIBUTES = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check mode; it changes nothing anyway.
    support: full
  diff_mode:
    description: There is never a difference to show.
    support: none
  async:
    description: Supports being used with the C(async) keyword.
    support: full
  platform:
    description: Target operating systems.
    support: full
    platforms: linux
  action_group:
    description: Use C(group/hypervisor.storage.storage) in C(module_defaults) to set defaults for all modules at once.
    support: full
    membership: [hypervisor.storage.storage]
"""
