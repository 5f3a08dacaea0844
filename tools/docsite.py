# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``docsite.py DIRECTORY``: build the docs site there, from nothing; a warning is an error."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zlib
from pathlib import Path

COLLECTION = "hypervisor.storage"
ANSIBLE_DOCS = "https://docs.ansible.com/projects/ansible/devel/"
# Labels of Ansible's own documentation that the pages refer to. Sphinx would fetch the list of all; the build must not depend
# on a network, so it knows the few that it needs: label, page, title.
ANSIBLE_LABELS = (
    (
        "ansible_collections.community.libvirt.virt_pool_module", "collections/community/libvirt/virt_pool_module.html",
        "community.libvirt.virt_pool module",
    ),
    ("ansible_configuration_settings", "reference_appendices/config.html", "Ansible Configuration Settings"),
    ("common_return_values", "reference_appendices/common_return_values.html", "Return Values"),
)


def main(site: Path) -> None:
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    site.chmod(0o755)
    subprocess.run(
        ["antsibull-docs", "sphinx-init", "--use-current", "--squash-hierarchy", "--fail-on-error",
         "--project", COLLECTION, "--title", COLLECTION, "--copyright", f"Contributors to the {COLLECTION} collection",
         "--dest-dir", str(site), COLLECTION],
        check=True,
    )
    write_inventory(site / "ansible.inv")
    with (site / "conf.py").open("a", encoding="utf-8") as conf:
        conf.write(f"\nintersphinx_mapping = {{'ansible_devel': ({ANSIBLE_DOCS!r}, '../ansible.inv')}}\n")
    subprocess.run(["bash", "build.sh"], cwd=site, check=True)
    print(f"{site / 'build' / 'html' / 'index.html'}")


def write_inventory(path: Path) -> None:
    """In the format of Sphinx's objects.inv, version 2."""
    head = "# Sphinx inventory version 2\n# Project: Ansible\n# Version: devel\n"
    head += "# The remainder of this file is compressed using zlib.\n"
    lines = (
        f"{label} std:label -1 {page}#{label.replace('_', '-').replace('.', '-')} {title}\n"
        for label, page, title in ANSIBLE_LABELS
    )
    path.write_bytes(head.encode() + zlib.compress("".join(lines).encode()))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
