# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can go wrong: one class per ``reason`` of the public interface.

Every layer below ``_runner`` raises these and nothing else for what a user or a host can cause.
A message says what failed, on which pool or volume, why, and what to do. Extra facts that help
a playbook to decide (``attachments``, ``dependents``, ``required``, ``available``) go along as
keyword arguments and end as keys of the result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class StorageError(Exception):
    """Anything a user or a host can cause; ``reason`` is stable public interface."""

    reason = "libvirt_error"

    def __init__(self, msg: str, **facts: Any) -> None:
        super().__init__(msg)
        self.msg = msg
        self.facts = facts


class ConnectionFailed(StorageError):
    reason = "connection_failed"


class PoolNotFound(StorageError):
    reason = "pool_not_found"


class PoolInactive(StorageError):
    reason = "pool_inactive"


class VolumeNotFound(StorageError):
    reason = "volume_not_found"


class VolumeMismatch(StorageError):
    reason = "volume_mismatch"


class Exchanged(VolumeMismatch):
    """A file is no longer the one that the decision is about; nothing was done, so the decision can be taken anew."""


class VolumeInUse(StorageError):
    reason = "volume_in_use"


class VolumeHasDependents(StorageError):
    reason = "volume_has_dependents"


class TemplateNotFound(StorageError):
    reason = "template_not_found"


class SnapshotNotFound(StorageError):
    reason = "snapshot_not_found"


class InsufficientSpace(StorageError):
    reason = "insufficient_space"


class ShrinkRefused(StorageError):
    reason = "shrink_refused"


class InvalidName(StorageError):
    reason = "invalid_name"


class InvalidSize(StorageError):
    reason = "invalid_size"


class InvalidOption(StorageError):
    reason = "invalid_option"


class UnsafeImage(StorageError):
    reason = "unsafe_image"


class Unsupported(StorageError):
    reason = "unsupported"


class Locked(StorageError):
    reason = "locked"


class ToolMissing(StorageError):
    reason = "tool_missing"


class ToolFailed(StorageError):
    reason = "tool_failed"


class LibvirtError(StorageError):
    reason = "libvirt_error"


@contextlib.contextmanager
def told_as_changed(changed: bool = True) -> Iterator[None]:
    """What fails when something was done doesn't undo it."""
    try:
        yield
    except StorageError as error:
        error.facts["changed"] = changed or error.facts.get("changed", False)
        raise


class Malformed(Exception):
    """An image breaks a rule of its format; the text, a clause ("its ..."), becomes ``ImageHeader.problem``."""
