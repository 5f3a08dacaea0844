# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Option fragments shared by the modules' argument specs; the documentation's side is in doc_fragments."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import env_fallback

from . import _process

# Here, since every module imports this file first; the larger ones come after it.
_process.begin(__name__.rpartition(".")[0])

DEFAULT_URI = "qemu:///system"


def connection_options() -> dict[str, Any]:
    """``uri``: which hypervisor."""
    return {"uri": {"type": "str", "default": DEFAULT_URI, "fallback": (env_fallback, ["LIBVIRT_DEFAULT_URI"])}}


def pool_options() -> dict[str, Any]:
    """``pool``: where the volumes are."""
    return {"pool": {"type": "str", "default": "default"}}


def name_options() -> dict[str, Any]:
    """``name``: one volume or several, the same wish for each."""
    return {"name": {"type": "list", "elements": "str", "required": True}}


def rights_options() -> dict[str, Any]:
    """``owner``, ``group`` and ``mode`` of new volumes."""
    return {"owner": {"type": "str"}, "group": {"type": "str"}, "mode": {"type": "raw"}}


def creation_options() -> dict[str, Any]:
    """What decides how a new volume lies on its storage."""
    return {
        "format": {"type": "str", "choices": ["qcow2", "raw"]},
        "preallocation": {"type": "str", "choices": ["off", "metadata", "falloc", "full"]},
        "cluster_size": {"type": "str"},
        "overcommit": {"type": "bool", "default": True},
        **rights_options(),
    }
