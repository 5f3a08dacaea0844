# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The archive in which Ansible sends a module, read without compiling each file of it twice.

Python's importer compiles a file to tell its name, which every import asks for, and once more to run it
(https://github.com/python/cpython/issues/141276, seen in 3.9 to 3.14). Compiling is most of what a run costs that finds
everything as it should be.
"""

from __future__ import annotations

import os
import sys
import zipimport
from typing import Any


class _Importer(zipimport.zipimporter):
    """Python's own importer, but a name is told by what is in the archive."""

    def get_filename(self, fullname: str) -> str:
        rest = f"{os.sep}__init__.py" if self.is_package(fullname) else ".py"
        return f"{self.archive}{os.sep}{self.prefix}{fullname.rpartition('.')[2]}{rest}"


def compile_once(package: str) -> None:
    """From now on, files of the package are compiled once, if it comes out of an archive; else nothing changes."""
    importers: dict[str, Any] = sys.path_importer_cache
    for directory in sys.modules[package].__path__:
        if isinstance(importers.get(directory), zipimport.zipimporter):
            importers[directory] = _Importer(directory)
