# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which images may be let near a tool, and which must not: what a header names could be any file of the host."""

from __future__ import annotations

from . import _running
from ._errors import UnsafeImage, Unsupported
from ._inventory import Host, Image
from ._os_errors import explain
from ._plans import VolumePlan
from ._steps import Grow


def assert_readable(host: Host, image: Image, where: str) -> None:
    """Refuse images that must not be let near a tool, and chains that leave the pools; raises UnsafeImage, Unsupported."""
    if image.failure is not None:
        raise explain(image.failure, f"look at the {where}")
    if image.distrust is not None:
        raise UnsafeImage(f"The {where} is not safe to read: {image.distrust}.", path=image.path)
    if image.capacity == 0:
        raise UnsafeImage(f"The {where} is empty: it can't be what was meant.", path=image.path)
    if image.header.encryption is not None or image.format == "luks":
        raise Unsupported(f"The {where} is encrypted by QEMU; only its own domain can read it.", path=image.path)
    if image.format not in ("qcow2", "raw"):
        raise UnsafeImage(
            f"The {where} looks like a {image.format} image; only qcow2 and raw are read, since other formats can refer to "
            "any file of the host. Convert it ('qemu-img convert') where it comes from.",
            path=image.path,
        )
    if image.header.corrupt:
        raise UnsafeImage(
            f"The {where} is marked as corrupt. Repair it ('qemu-img check -r all') before it is used.", path=image.path
        )
    if image.chain.trouble is not None:
        raise UnsafeImage(f"The {where} is not safe to read: {image.chain.trouble}.", path=image.path)
    for layer in image.chain.layers:
        if layer.format not in ("qcow2", "raw"):
            raise UnsafeImage(
                f"The {where} is not safe to read: its backing file {layer.path!r} looks like {layer.format}.", path=image.path
            )
        if host.home(layer.ident) is None:
            raise UnsafeImage(
                f"The {where} is not safe to read: its backing file {layer.path!r} lies outside every active pool of "
                "this host. Start the pool that it lies in, or flatten the image where it comes from.",
                path=image.path,
            )


def assert_growable(host: Host, image: Image, planned: VolumePlan) -> None:
    """Refuse to let qemu-img open an unsafe image for writing: what its header names would be opened, a data file written to.

    Raw files are grown without a look at what is in them, and what runs was opened by its domain; that resizes no disk
    while a job works on it. Raises Locked, or as assert_readable().
    """
    where = f"volume {image.name!r} of pool {image.pool.name if image.pool else ''!r}"
    if planned.steps:
        assert_no_way_out(host, image, where)
    for use in [use for step in planned.steps if isinstance(step, Grow) for use in step.online]:
        if use.target is not None:
            what = f"grow {where} through {use.target} of the running domain {use.domain!r}"
            _running.assert_no_block_job(host.connection, domain_uuid=use.domain_uuid, target=use.target, what=what)
    if image.format == "qcow2" and any(isinstance(step, Grow) and not step.online for step in planned.steps):
        assert_readable(host, image, where)


def assert_no_way_out(host: Host, image: Image, where: str) -> None:
    """Refuse a link out of the pools: whoever can put one there must not reach other files with it. Raises UnsafeImage."""
    if image.is_link and host.home(image.ident) is None:
        raise UnsafeImage(
            f"The {where} is a link to something outside every active pool of this host, which may be any file. Move what it "
            "leads to into a pool.",
            path=image.path,
        )
