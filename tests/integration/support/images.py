# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tiny images with known content, made and read by the real qemu-img."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

KIB, MIB, GIB = 1024, 1024**2, 1024**3
PASSPHRASE = "abc"


def sh(*argv: str | Path, timeout: float = 60) -> str:
    """Run a tool that must succeed; its stdout."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{argv} gave {done.returncode}: {done.stderr}{done.stdout}"
    return done.stdout


def noise(size: int, seed: str = "seed") -> bytes:
    """Repeatable bytes that neither compress nor look like zeros."""
    return random.Random(seed).randbytes(size)


def make(path: Path, fmt: str = "qcow2", size: int = 4 * MIB, seed: str = "seed", options: str = "") -> Path:
    """An image that holds ``size`` bytes, the first half noise of ``seed``, the rest zeros."""
    with tempfile.NamedTemporaryFile() as raw:
        raw.write(noise(size // 2, seed))
        raw.truncate(size)
        raw.flush()
        extra = ("-o", options) if options else ()
        sh("qemu-img", "convert", "-f", "raw", "-O", fmt, *extra, raw.name, path)
    return path


def blank(path: Path, size: int | str = MIB, fmt: str = "qcow2", options: str = "") -> Path:
    sh("qemu-img", "create", "-q", "-f", fmt, *(("-o", options) if options else ()), path, str(size))
    return path


def overlay(path: Path, backing: Path | str, backing_fmt: str = "qcow2") -> Path:
    sh("qemu-img", "create", "-q", "-f", "qcow2", "-F", backing_fmt, "-b", str(backing), path)
    return path


def encrypted(path: Path) -> Path:
    """A qcow2 of 1 MiB that QEMU encrypts (by its old method: LUKS measures the processor, which tests may starve)."""
    sh("qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc",
       "-o", "encrypt.format=aes,encrypt.key-secret=s", path, "1M")
    return path


def luks(path: Path, size: int = MIB) -> Path:
    """A qcow2 that QEMU encrypts with LUKS; it measures the processor as shortly as it can."""
    return _create_luks("qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", path, size)


def luks_alone(path: Path, size: int = MIB) -> Path:
    """LUKS as QEMU makes it around a raw image, which then offers ``size`` bytes and takes more."""
    return _create_luks("luks", "key-secret=s,iter-time=10", path, size)


def _create_luks(fmt: str, options: str, path: Path, size: int) -> Path:
    argv = ["qemu-img", "create", "-q", "-f", fmt, "--object", f"secret,id=s,data={PASSPHRASE}", "-o", options, path, str(size)]
    for _attempt in range(30):  # a processor that others keep busy can't be measured
        if subprocess.run(argv, capture_output=True, check=False).returncode == 0:
            return path
    raise AssertionError(f"{argv} failed again and again")


def info(path: Path, fmt: str | None = None) -> dict:
    """qemu-img's own view, also while a domain has the image open."""
    return json.loads(sh("qemu-img", "info", "-U", "--output=json", *(("-f", fmt) if fmt else ()), path))


def content(path: Path, fmt: str = "qcow2") -> bytes:
    """What a guest would read; the image may be in use."""
    with tempfile.TemporaryDirectory() as tmp:
        sh("qemu-img", "convert", "-U", "-f", fmt, "-O", "raw", path, f"{tmp}/raw")
        return Path(tmp, "raw").read_bytes()


def digest(path: Path, fmt: str = "qcow2", length: int | None = None) -> str:
    """sha256 of the first ``length`` bytes (default: all) that a guest would read."""
    return sha(content(path, fmt)[:length])


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_sha(path: Path) -> str:
    return sha(path.read_bytes())


def used(path: Path) -> int:
    """Bytes of storage behind the file, as du counts."""
    return path.stat().st_blocks * 512


def write(path: Path, pattern: int, offset: int = 0, length: int = MIB, fmt: str = "qcow2") -> None:
    sh("qemu-io", "-f", fmt, "-c", f"write -P {pattern} {offset} {length}", path)


def take_snapshot(path: Path, name: str) -> None:
    """An internal snapshot of an image that nobody has open."""
    sh("qemu-img", "snapshot", "-c", name, path)


def qcow2_header(size: int = MIB, backing: str = "", version: int = 3, incompatible: int = 0) -> bytes:
    """A well-formed first cluster as a guest could write it, pointing wherever it likes."""
    name = backing.encode()
    fixed = struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", version, 512 if name else 0, len(name), 16, size, 0,
        1, 0x30000, 0x10000, 1, 0, 0, incompatible, 0, 0, 4, 104)
    return fixed.ljust(512, b"\0") + name.ljust(1024, b"\0")


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as image:
        image.seek(offset)
        image.write(data)


@contextlib.contextmanager
def held_by_qemu_io(path: Path, fmt: str = "qcow2") -> Iterator[None]:
    """A bare qemu process, unknown to libvirt, that has the image open for writing."""
    argv = ["qemu-io", "-f", fmt, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            # Its prompt says that the image is open; looking at the image instead could disturb the opening.
            assert holder.stdout.read(8) == b"qemu-io>"
            yield
        finally:
            holder.kill()


@contextlib.contextmanager
def exported_by_nbd(path: Path, fmt: str = "qcow2") -> Iterator[None]:
    """A bare qemu-nbd that serves the image read-write."""
    with tempfile.TemporaryDirectory() as tmp:
        ready = Path(tmp, "pid")
        argv = ["qemu-nbd", "-f", fmt, "-t", "-k", f"{tmp}/socket", f"--pid-file={ready}", str(path)]
        with subprocess.Popen(argv) as server:
            try:
                wait_until(ready.exists)
                yield
            finally:
                server.kill()


def is_locked(path: Path, *, against: str = "writing") -> bool:
    """Whether a process keeps others from ``writing`` or ``reading`` the image, by QEMU's locks."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        # struct flock, for the byte by which QEMU's "consistent read" or "write" is denied to others (block/file-posix.c).
        byte = {"reading": 200, "writing": 201}[against]
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
        return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(fd)


def wait_until(ready, timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not ready():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
