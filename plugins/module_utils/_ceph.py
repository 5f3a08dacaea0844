# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the Ceph clusters behind pools of type rbd tell beside libvirt: the way to each, and which image is a clone of which."""

from __future__ import annotations

from collections.abc import Iterable

from ._chains import Layer
from ._errors import Unsupported
from ._libvirt import Connection
from ._model import Dependent, Ident, Pool
from ._rbd import Rbd, RbdImage, is_installed


class CephView:
    """The clusters of one call, looked at when first needed; what was seen is kept until forget()."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ways: dict[str, Rbd] = {}
        self._images: dict[str, dict[str, RbdImage]] = {}

    def forget(self) -> None:
        """Drop what was seen, after a change or a wait."""
        self._images.clear()

    def way_to(self, pool: Pool) -> Rbd:
        """The way to the Ceph pool behind a pool of type rbd; raises Unsupported for other pools."""
        if pool.uuid not in self._ways:
            if pool.type != "rbd" or pool.source is None:
                raise Unsupported(f"Pool {pool.name!r} is of type {pool.type}: its volumes are out of reach.", pool=pool.name)
            secret = pool.source.secret
            key = self._connection.secret(*secret) if secret is not None else None
            self._ways[pool.uuid] = Rbd(pool.source, key)
        return self._ways[pool.uuid]

    def images(self, pool: Pool) -> dict[str, RbdImage]:
        """What the cluster knows of a pool's images; nothing where the tool for it isn't installed."""
        if pool.type != "rbd" or not is_installed():
            return {}
        if pool.uuid not in self._images:
            self._images[pool.uuid] = self.way_to(pool).images()
        return self._images[pool.uuid]

    def parents(self, name: str, pool: Pool) -> tuple[Layer, ...]:
        """The images that an RBD image is a clone of, directly or not, as far as they lie in the same Ceph pool."""
        images = self.images(pool)
        layers: list[Layer] = []
        image = images.get(name)
        while image is not None and image.parent is not None and len(layers) < len(images):
            path = "/".join(image.parent)
            layers.append(Layer(path, ("network", path, ""), "raw"))
            same = pool.source is not None and image.parent[0] == pool.source.name
            image = images.get(image.parent[1]) if same else None
        return tuple(layers)

    def dependents(self, ident: Ident, pools: Iterable[Pool]) -> tuple[Dependent, ...]:
        """The RBD clones of an image; nothing but an RBD image can have one below."""
        found = set()
        for pool in pools:
            place = pool.source.name if pool.source is not None else ""
            for name in self.images(pool):
                if any(layer.ident == ident for layer in self.parents(name, pool)):
                    found.add((pool.name, name, f"{place}/{name}"))
        return tuple(Dependent(*each) for each in sorted(found))

    def home(self, key: str, pools: Iterable[Pool]) -> tuple[Pool, str] | None:
        """The pool and volume that an image is, by its key: its Ceph pool and its name."""
        place, _slash, name = key.partition("/")
        for pool in pools:
            if pool.type == "rbd" and pool.source is not None and pool.source.name == place:
                if self._connection.knows_volume(pool, name):
                    return pool, name
        return None
