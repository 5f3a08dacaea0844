# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all use cases that change volumes share: the right to work on their names, and the look afterwards.

The hands (_apply and what it needs) are imported when there is something to do. Ansible sends modules as source in an
archive, so each run compiles what it imports, and most runs find that all is as it should be.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import _locks, _names, _requests
from ._describe import describe
from ._directory import identify, look_at
from ._errors import ToolFailed, UnsafeImage, Unsupported, VolumeNotFound
from ._inventory import NOT_AN_IMAGE, Host, Image
from ._model import MANAGED_POOL_TYPES, Pool, Volume
from ._names import STAGING_PREFIX
from ._os_errors import explain
from ._plans import Plan, VolumePlan


class NamedVolumes:
    """The volumes that one call names, in one pool."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.names = _requests.read_names(params)
        self.pool_name: str = params["pool"]

    @contextlib.contextmanager
    def guard(self, host: Host) -> Iterator[None]:
        """Hold the names; leftovers of killed runs are cleared first, and libvirt's view of the names set right."""
        pool = host.pool(self.pool_name)
        with _locks.hold_names(identify(pool.path) if pool.stores_files and pool.path else pool.place, self.names) as waited:
            if waited:
                host.forget()
            if pool.stores_files and pool.path is not None:
                if _has_leftovers(pool.path):
                    from ._leftovers import clear

                    clear(host, pool.path)
                self._correct_libvirt(host, pool)
            elif pool.type in MANAGED_POOL_TYPES and host.has_hidden(pool):
                from ._without_files import sweep

                sweep(host, pool)
            yield

    def pool(self, host: Host) -> Pool:
        """The pool of these volumes, fit to be changed; raises Unsupported, InvalidName and what Host.pool() raises."""
        pool = host.changeable_pool(self.pool_name)
        for name in self.names:
            _names.check_name_in(pool.type, name)
        return pool

    def assert_room(
        self, host: Host, pool: Pool, plans: Sequence[VolumePlan], *, overcommit: bool
    ) -> tuple[str, ...]:
        """What must hold before any step is taken: libvirt can be told of it, and there is room. Returns warnings.

        Raises Unsupported, UnsafeImage or InsufficientSpace.
        """
        if not any(planned.steps for planned in plans):
            return ()
        assert_writable(pool, [planned.name for planned in plans if planned.steps])
        from ._refresh import assert_refreshable
        from ._space import SpaceCheck

        if pool.stores_files:
            assert_refreshable(host, pool)
        return SpaceCheck().check(host, pool, plans, overcommit=overcommit)

    def extra_result(self, plan: Plan) -> dict[str, Any]:
        """Keys of the result beside those of all modules."""
        return {}

    def describe(self, host: Host) -> list[Volume | None]:
        """The volumes as they are now."""
        pool = host.pool(self.pool_name)
        images = [host.image(pool, name) for name in self.names]
        return [describe(host, image) if image is not None else None for image in images]

    def _correct_libvirt(self, host: Host, pool: Pool) -> None:
        """A run that was killed after it published or removed a file could not tell libvirt: do it now.

        Not where that would harm the pool: what needs libvirt's view is refused for it later, the rest is not.
        """
        for name in self.names:
            facts = look_at(os.path.join(pool.path or "", name))
            listed = facts is not None and facts.kind != "other"
            if listed != host.connection.knows_volume(pool, name):
                from ._refresh import tell_libvirt

                with contextlib.suppress(UnsafeImage, ToolFailed):
                    tell_libvirt(host, pool)
                return


def assert_writable(pool: Pool, names: Sequence[str]) -> None:
    """Refuse to change volumes on a file system that is mounted read-only; raises Unsupported.

    Check mode would not find out, and tools tell of it in words of their own. A link may lead to another file system.
    """
    if not pool.stores_files or pool.path is None:
        return
    with contextlib.suppress(OSError):  # whoever changes something there will hear of it
        if not os.statvfs(pool.path).f_flag & os.ST_RDONLY:
            return
        for name in names:
            if not os.path.islink(os.path.join(pool.path, name)):
                raise explain(OSError(errno.EROFS, os.strerror(errno.EROFS)), f"change volume {name!r} of pool {pool.name!r}")


def find_image(host: Host, pool: Pool, name: str) -> Image | None:
    """A pool's volume by name; raises Unsupported for what bears a volume's name but can't be one."""
    image = host.image(pool, name)
    path = os.path.join(pool.path or "", name)
    if image is None and pool.stores_files and os.path.islink(path) and not os.path.exists(path):
        raise Unsupported(
            f"{path!r} in pool {pool.name!r} is a symbolic link to nothing, which takes the name. Mend the link, or remove it.",
            path=path,
        )
    if image is not None and image.failure is not None:
        raise explain(image.failure, f"look at volume {name!r} of pool {pool.name!r} ({image.path!r})")
    if image is not None and image.distrust == NOT_AN_IMAGE:
        raise Unsupported(
            f"{image.path!r} in pool {pool.name!r} is neither a file nor a block device; it is left alone.", path=image.path
        )
    return image


def need_image(host: Host, pool: Pool, name: str) -> Image:
    """Like find_image(), but raises VolumeNotFound when there is nothing."""
    image = find_image(host, pool, name)
    if image is None:
        raise VolumeNotFound(
            f"There is no volume {name!r} in pool {pool.name!r}. Check the name and the pool; volume_info lists what is there.",
            volume=name,
            pool=pool.name,
        )
    return image


def _has_leftovers(directory: str) -> bool:
    """Whether there may be something that killed runs left; what is being made now looks the same."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        return any(entry.name.startswith(STAGING_PREFIX) for entry in entries)
    return True
