# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The use case behind ``volume_info``: list, filter and describe, touching nothing."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from . import _names, _requests
from ._describe import describe
from ._errors import InvalidOption, PoolInactive, Unsupported
from ._inventory import NOT_AN_IMAGE, Host
from ._model import Pool, Volume

_GLOB = frozenset("*?[")


def collect(params: Mapping[str, Any], host: Host) -> tuple[dict[str, Any], list[str]]:
    """The result and the warnings of one call; raises PoolNotFound or PoolInactive for pools named explicitly."""
    name, pattern = params["name"], params["pattern"]
    if name is not None:
        _names.check_name(name)
    if pattern == "":
        raise InvalidOption("pattern is empty: give part of a name or a glob, or leave it out.")
    if params["format"] == "":
        raise InvalidOption("format is empty: give one, for example qcow2 or raw, or leave it out.")
    pools, warnings = _choose_pools(host, _requests.read_patterns(params["pool"], option="pool"))
    volumes: list[Volume] = []
    for pool in pools:
        if pool.stores_files:
            host.assert_local()
        images = [host.image(pool, name)] if name is not None else host.images(pool)
        for image in images:
            if image is None or image.distrust == NOT_AN_IMAGE:
                continue
            if pattern is not None and not matches(pattern, image.name):
                continue
            if params["format"] is not None and image.format != params["format"]:
                continue
            if image.failure is not None:
                warnings.append(
                    f"Volume {image.name!r} of pool {pool.name!r} can't be read: {image.failure.strerror}. What it holds is not known."
                )
            volume = describe(host, image)
            if params["status"] is None or volume.status == params["status"]:
                volumes.append(volume)
    volumes.sort(key=lambda volume: (volume.pool, volume.name))
    result = {
        "volumes": [volume.to_result() for volume in volumes],
        "pools": [host.described_pool(pool).to_result() for pool in pools],
    }
    return result, warnings


def matches(pattern: str, name: str) -> bool:
    """A shell glob where the pattern has one of ``*?[``, else part of the name in any case."""
    if _GLOB.intersection(pattern):
        return fnmatch.fnmatchcase(name, pattern)
    return pattern.casefold() in name.casefold()


def _choose_pools(host: Host, wanted: list[str] | None) -> tuple[list[Pool], list[str]]:
    if wanted is not None:
        return sorted((host.pool(name) for name in wanted), key=lambda pool: pool.name), []
    idle = host.connection.inactive_pools()
    warnings = [f"Pools that are not active were left out: {', '.join(idle)}."] if idle else []
    pools = []
    for pool in host.pools():
        try:
            host.assert_within_reach(pool)
        except (PoolInactive, Unsupported) as error:
            warnings.append(f"Pool {pool.name!r} was left out: {error.msg}")
        else:
            pools.append(pool)
    return pools, warnings
