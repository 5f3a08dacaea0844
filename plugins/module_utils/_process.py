# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What Python need not do in a process that lives for a fifth of a second, most of which goes by with what is done here.

Python's importer of archives, as which Ansible sends a module, compiles a file to tell its name, which every import asks for, and
once more to run it (https://github.com/python/cpython/issues/141276, seen in 3.9 to 3.14). Its garbage collector looks through
all objects for cycles again and again while modules are imported, and at the end of the process once more, when all of them go anyway
(https://docs.python.org/3/library/gc.html#gc.freeze). And libvirt's library brings fifty others, which takes the dynamic loader as
long as it takes Python to compile a third of our files.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import zipimport
from typing import Any


class _Importer(zipimport.zipimporter):
    """Python's own importer, but a name is told by what is in the archive."""

    def get_filename(self, fullname: str) -> str:
        rest = f"{os.sep}__init__.py" if self.is_package(fullname) else ".py"
        return f"{self.archive}{os.sep}{self.prefix}{fullname.rpartition('.')[2]}{rest}"


#: Whether this file came in an archive: then the process has no other purpose than one run of one module.
_ALONE = isinstance(__spec__.loader, zipimport.zipimporter)


def _load_libvirt() -> None:
    """Load libvirt's library, if it is there, and the fifty that it needs: a call through ctypes lets others run, an import does not."""
    with contextlib.suppress(ImportError, OSError, AttributeError):  # then the import takes its time, or says what is wrong
        import ctypes

        ctypes.CDLL(None).dlopen(b"libvirt.so.0", os.RTLD_NOW)


_ahead = threading.Thread(target=_load_libvirt)


def begin(package: str) -> None:
    """From now on, files of the package are compiled once, nothing is collected, and libvirt's library is loaded meanwhile."""
    if _ALONE:
        gc.disable()
        with contextlib.suppress(RuntimeError):  # no more threads are to be had
            _ahead.start()
        importers: dict[str, Any] = sys.path_importer_cache
        for directory in sys.modules[package].__path__:
            if isinstance(importers.get(directory), zipimport.zipimporter):
                importers[directory] = _Importer(directory)


def start() -> None:
    """The imports are done: what they made stays and is not looked through any more; what the work leaves behind is collected."""
    if _ALONE:
        if _ahead.ident is not None:
            _ahead.join()
        gc.freeze()
        gc.enable()


def end() -> None:
    """Nothing follows but the end of the process, which frees what cycles hold as well."""
    if _ALONE:
        gc.disable()
        gc.freeze()
