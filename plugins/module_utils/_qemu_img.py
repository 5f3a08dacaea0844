# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only file that knows qemu-img: one function per subcommand, exit codes in this collection's words.

Every image is named with its format, every argument is one item of a list, messages come in the C locale,
and a child never outlives us. Manual: https://www.qemu.org/docs/master/tools/qemu-img.html
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import select
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from . import _landlock
from ._errors import InsufficientSpace, ToolFailed, ToolMissing, VolumeInUse
from ._landlock import Handed
from ._named_tuple import NamedTuple
from ._os_errors import tells_of_no_room

#: Limits of runs that read headers only (an image's header is written by whoever owns the guest).
HEADER_CPU_SECONDS = 30
HEADER_MEMORY_BYTES = 1 << 30
# Each thread's own arena reserves 64 MiB of address space, which would count as memory under the limit.
_FRUGAL = {"MALLOC_ARENA_MAX": "1"}
_PR_SET_PDEATHSIG = 1
_FLUSH_SECONDS = 0.25
# Contents are compared in pieces: enough for all processors to end at about the same time, but none in which a process's start counts.
_PIECES, _PIECE, _LEAST_PIECE = 8, 256 << 20, 64 << 20
_TEAM = 4  # a disk has one head
# Of a table of a qcow2 image, this much is kept at once (or a cluster, if that is smaller). By default it is a cluster, all of whose
# entries are gone through whenever a stretch of the image is asked after (QEMU's docs/qcow2-cache.txt and count_contiguous_subclusters()).
_TABLE_PART = 4096
# Our way to say an image with its chain is no help to people; QEMU's messages quote it.
_CHAIN = re.compile(r"'?json:\{.*\}'?")
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"])


class Completed(NamedTuple):
    """How a run of a tool ended."""

    returncode: int
    stdout: str
    stderr: str


class Runner(Protocol):
    """What run_tool() does."""

    def __call__(self, argv: Sequence[str], pass_fds: Sequence[int], limited: bool, flush: int | None = None, /) -> Completed:
        """Run a tool to its end."""


#: What run_team() does.
TeamRunner = Callable[[Sequence[Sequence[str]], Sequence[int]], Sequence[Completed]]


def run_tool(argv: Sequence[str], pass_fds: Sequence[int], limited: bool, flush: int | None = None) -> Completed:
    """Run a tool to its end; with ``limited``, under bounds of processor time and memory.

    What it writes to the file open as ``flush`` is brought to the disk meanwhile, so that the sync that follows finds little
    left to do; raises OSError as that sync would.
    """
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(start_tool(argv, pass_fds, limited))
        stack.callback(process.kill)
        while True:
            try:
                stdout, stderr = process.communicate(timeout=None if flush is None else _FLUSH_SECONDS)
                return Completed(process.returncode, stdout, stderr)
            except subprocess.TimeoutExpired:
                if flush is not None:
                    os.fdatasync(flush)


def run_team(argvs: Sequence[Sequence[str]], pass_fds: Sequence[int]) -> list[Completed]:
    """Run tools that say little, some at a time, until all have ended or one fails; returns those that ended, in any order.

    Each keeps to its share of the processors: a comparison waits all the time for threads of its own that read and decompress for it,
    and to wake one on another processor takes longer than what it is woken for.
    """
    waiting, ended = list(argvs), []
    running: dict[int, tuple[subprocess.Popen[str], frozenset[int]]] = {}  # by the descriptor of what they say
    free = _shares(os.sched_getaffinity(0))
    poll = select.poll()
    with contextlib.ExitStack() as stack:
        while waiting or running:
            while waiting and free:
                share = free.pop(0)
                process = stack.enter_context(start_tool(waiting.pop(0), pass_fds, False, share))
                stack.callback(process.kill)
                if process.stdout is not None:
                    running[process.stdout.fileno()] = process, share
                    poll.register(process.stdout, select.POLLIN)
            for fd, _event in poll.poll():
                poll.unregister(fd)
                process, share = running.pop(fd)
                free.append(share)
                stdout, stderr = process.communicate()
                ended.append(Completed(process.returncode, stdout, stderr))
            if any(done.returncode != 0 for done in ended):
                break
    return ended


def _shares(processors: Collection[int]) -> list[frozenset[int]]:
    """The processors that each of a team keeps to: all have as many, neighbours by number; two share an only one."""
    numbers = sorted(processors)
    count = min(len(numbers), _TEAM)
    shares = [frozenset(numbers[len(numbers) * each // count : len(numbers) * (each + 1) // count]) for each in range(count)]
    return shares * (2 if count == 1 else 1)


def start_tool(
    argv: Sequence[str], pass_fds: Sequence[int], limited: bool, processors: Collection[int] = ()
) -> subprocess.Popen[str]:
    """Start a tool that is killed when we are; with an Only as descriptors it can open nothing else, where the kernel can do that.

    It makes way for guests (SCHED_BATCH, sched(7)), and ends sooner for it: its threads are not stopped each time that they wake
    each other. With ``processors``, it keeps to those.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:  # in the child, before the tool starts
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(127)
        if limited:
            resource.setrlimit(resource.RLIMIT_CPU, (HEADER_CPU_SECONDS, HEADER_CPU_SECONDS))
            resource.setrlimit(resource.RLIMIT_AS, (HEADER_MEMORY_BYTES, HEADER_MEMORY_BYTES))
        with contextlib.suppress(OSError):  # where the system knows nothing of it, or lost a processor
            if os.sched_getscheduler(0) == os.SCHED_OTHER:  # what somebody has given us is kept
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            if processors:
                os.sched_setaffinity(0, processors)
        confine()

    with _landlock.confinement(argv[0], pass_fds) as confine:
        # AnsibleModule.run_command knows neither limits nor a parent that was killed, and belongs to the runner alone.
        return subprocess.Popen(  # pylint: disable=ansible-bad-function,consider-using-with
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=tuple(pass_fds),
            env={**os.environ, "LC_ALL": "C", "LANGUAGE": "C", **(_FRUGAL if limited else {})},
            preexec_fn=prepare,
            encoding="utf-8",
            errors="replace",
        )


class Measure(NamedTuple):
    """What ``qemu-img measure`` foresees, in bytes: what must be written, and the most the image can grow to."""

    required: int
    fully_allocated: int


class OpenLayer(NamedTuple):
    """One image of a chain, open as ``fd``; ``cluster_size`` in bytes of a qcow2 image."""

    fd: int
    format: str
    cluster_size: int | None = None


def locate_layers(layers: Sequence[OpenLayer]) -> Handed:
    """What stands for an image whose chain is open, from itself down to its base: no name in a header is followed.

    QEMU opens the descriptors that it inherits once more, so that its image locks work as ever.
    """
    top = layers[0]
    if top.format == "raw":
        return Handed(top.fd)
    node: dict[str, Any] | None = None
    for layer in reversed(layers):
        upper = _node(layer.format, f"/proc/self/fd/{layer.fd}")
        if layer.format != "raw":
            upper["backing"] = node
        if layer.format == "qcow2" and layer.cluster_size:
            upper["l2-cache-entry-size"] = min(layer.cluster_size, _TABLE_PART)
        node = upper
    return Handed(top.fd, f"json:{json.dumps(node, separators=(',', ':'))}")


class QemuImg:
    """qemu-img of this host; the runner is a parameter so that faults can be played to it."""

    def __init__(self, runner: Runner = run_tool, team_runner: TeamRunner = run_team) -> None:
        self._runner, self._team_runner = runner, team_runner
        self._program: str | None = None

    def create(
        self,
        *,
        path: str,
        image_format: str,
        capacity: int,
        options: Mapping[str, str],
        backing: tuple[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Write an empty image of ``capacity`` bytes, with ``backing`` = (path, format) as an overlay of it, which isn't opened."""
        argv = ["create", "-q", "-f", image_format, *_options(options)]
        if backing is not None:
            argv += ["-u", "-b", backing[0], "-F", backing[1]]
        fds = _fds(pass_fds, writes=path)
        self._run([*argv, "--", path, str(capacity)], what=f"create a {image_format} image", pass_fds=fds)

    def convert(
        self,
        *,
        source: str,
        source_format: str,
        snapshot: str | None,
        shared: bool,
        target: str,
        target_format: str,
        options: Mapping[str, str],
        direct: bool,
        into_existing: bool = False,
        zeroed: bool = False,
        compressed: bool = False,
        backing: tuple[str, str] | None = None,
        flush: int | None = None,
        pass_fds: Sequence[int] = (),
        label: str | None = None,
    ) -> None:
        """Copy what a guest would see of ``source``, or of its internal snapshot with this id, flattened.

        With ``backing`` = (path, format), which is what ``source`` and the existing target have too, only what lies above it
        is copied; qemu-img takes that as a remark, and opens it through the target alone.

        ``shared`` reads an image that a QEMU has open for writing: right for a frozen internal snapshot alone.
        ``label`` is the source's name for people. ``direct`` writes past the page cache (-t none); otherwise through it, from which
        what is written to the file open as ``flush`` is brought to the disk meanwhile. The caller syncs.
        """
        argv = ["convert", "-q", "-f", source_format, "-O", target_format, "-W", "-m", "16"]
        argv += ["-t", "none" if direct else "writeback", *_options(options)]
        argv += _snapshot_option(snapshot)
        if shared:
            argv.append("-U")
        if into_existing:
            argv.append("-n")
        if zeroed:  # the target reads as zeros already
            argv.append("--target-is-zero")
        if compressed:
            argv.append("-c")
        if backing is not None:
            argv += ["-B", backing[0], "-F", backing[1]]
        fds = _fds(pass_fds, source, writes=target)
        self._run([*argv, "--", source, target], what=f"copy {label or repr(source)}", pass_fds=fds, flush=flush)

    def measure(
        self,
        *,
        source: str,
        source_format: str,
        snapshot: str | None,
        shared: bool,
        target_format: str,
        options: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        label: str | None = None,
        limited: bool = True,
    ) -> Measure:
        """How much room a copy of ``source`` in ``target_format`` takes."""
        argv = ["measure", "--output=json", "-f", source_format, "-O", target_format, *_options(options)]
        argv += _snapshot_option(snapshot)
        if shared:
            argv.append("-U")
        return self._measure([*argv, "--", source], f"measure {label or repr(source)}", _fds(pass_fds, source), limited)

    def measure_empty(self, *, capacity: int, image_format: str, options: Mapping[str, str]) -> Measure:
        """How much room an image of ``capacity`` bytes takes with all its metadata, and full."""
        argv = ["measure", "--output=json", "-O", image_format, *_options(options), "--size", str(capacity)]
        return self._measure(argv, "measure an empty image")

    def _measure(self, argv: list[str], what: str, pass_fds: Sequence[int] = (), limited: bool = True) -> Measure:
        answer = json.loads(self._run(argv, what=what, pass_fds=pass_fds, limited=limited))
        return Measure(required=int(answer["required"]), fully_allocated=int(answer["fully-allocated"]))

    def resize(
        self,
        *,
        path: str,
        image_format: str,
        capacity: int,
        preallocation: str = "off",
        shrink: bool = False,
        pass_fds: Sequence[int] = (),
        label: str | None = None,
    ) -> None:
        """Set an image's capacity in bytes; ``shrink`` is for images in the making only. ``label`` is its name for people."""
        argv = ["resize", "-q", "-f", image_format]
        if preallocation != "off":
            argv.append(f"--preallocation={preallocation}")
        if shrink:
            argv.append("--shrink")
        fds = _fds(pass_fds, writes=path)
        self._run([*argv, "--", path, str(capacity)], what=f"resize {label or repr(path)}", pass_fds=fds)

    def compare(
        self,
        *,
        first: str,
        first_format: str,
        second: str,
        second_format: str,
        capacity: int = 0,
        pass_fds: Sequence[int] = (),
        label: str | None = None,
    ) -> None:
        """Make sure that a guest would see the same in both; the longer one has to end in zeros.

        ``capacity``: bytes that both have at least. Large ones are compared in pieces, side by side.
        """
        fds = _fds(pass_fds, first, second)
        begin = [self._find(), "compare", "-q"]
        pieces = _pieces(capacity) if _is_divisible(first) and _is_divisible(second) else []
        if pieces:
            parts = [(_piece_of(first, first_format, *piece), _piece_of(second, second_format, *piece)) for piece in pieces]
            argvs = [[*begin, "-f", "raw", "-F", "raw", "--", *part] for part in parts]
            ended = self._team_runner(argvs, fds)
        else:
            argvs = [[*begin, "-f", first_format, "-F", second_format, "--", first, second]]
            ended = [self._runner(argvs[0], fds, False)]
        for done in ended:
            if done.returncode == 1:
                raise ToolFailed(
                    f"The copy of {label or repr(first)} differs from it, so it was dropped. Check the storage, then run again."
                )
            if done.returncode != 0:
                raise _failure(f"compare {label or repr(first)} with its copy", done)
        if len(ended) != len(argvs):
            raise ToolFailed(f"{label or repr(first)} was not compared with its copy as a whole, so the copy was dropped. Run again.")

    def check(self, *, path: str, image_format: str, pass_fds: Sequence[int] = ()) -> bool:
        """Check an image's structure; returns whether it is free of leaked clusters, which waste space but harm nothing."""
        argv = ["check", "-q", "-f", image_format, "--", path]
        done = self._runner([self._find(), *argv], _fds(pass_fds, path), False)
        if done.returncode not in (0, 3):
            raise _failure(f"find image {path!r} sound", done)
        return done.returncode == 0

    def _run(
        self, arguments: Sequence[str], *, what: str, pass_fds: Sequence[int] = (), limited: bool = False, flush: int | None = None
    ) -> str:
        done = self._runner([self._find(), *arguments], pass_fds, limited, flush)
        if done.returncode == 0:
            return done.stdout
        raise _failure(what, done)

    def _find(self) -> str:
        if self._program is None:
            self._program = shutil.which("qemu-img", path=SEARCH_PATH)
        if self._program is None:
            raise ToolMissing(
                "qemu-img is not on this host. Install it: package 'qemu-utils' on Debian and Ubuntu, "
                "'qemu-img' on Fedora, RHEL and their kin.",
                tool="qemu-img",
            )
        return self._program


def _fds(pass_fds: Sequence[int], *reads: str, writes: str | None = None) -> Sequence[int]:
    """The descriptors; as all that may be opened, where every image is one of them and none a name."""
    images = [*reads, *([] if writes is None else [writes])]
    if not all(isinstance(image, Handed) and image.fd in pass_fds for image in images):
        return pass_fds
    return _landlock.Only(pass_fds, [writes.fd] if isinstance(writes, Handed) else [])


def _pieces(capacity: int) -> list[tuple[int, int | None]]:
    """Where the pieces of an image begin and how long they are, the last one to its end; none when it is small."""
    if capacity < 2 * _LEAST_PIECE:
        return []
    count = min(_PIECES, max(capacity // _PIECE, 2))
    length = capacity // count >> 20 << 20
    return [(number * length, length if number < count - 1 else None) for number in range(count)]


def _is_divisible(location: str) -> bool:
    return location.startswith(("json:", "/"))


def _piece_of(location: str, image_format: str, start: int, length: int | None) -> str:
    """A part of what a guest would see of an image, as an image of its own (QEMU's raw driver with an offset)."""
    node = json.loads(location[len("json:") :]) if location.startswith("json:") else _node(image_format, location)
    piece: dict[str, Any] = {"driver": "raw", "offset": start, "file": node}
    if length is not None:
        piece["size"] = length
    return f"json:{json.dumps(piece, separators=(',', ':'))}"


def _node(image_format: str, path: str) -> dict[str, Any]:
    """A file or block device as QEMU's -blockdev has it."""
    driver = "host_device" if stat.S_ISBLK(os.stat(path).st_mode) else "file"
    return {"driver": image_format, "file": {"driver": driver, "filename": path}}


def _options(options: Mapping[str, str]) -> list[str]:
    """``-o`` with values in which a comma stands doubled, as QEMU's option parser wants it."""
    if not options:
        return []
    return ["-o", ",".join(f"{key}={value.replace(',', ',,')}" for key, value in options.items())]


def _snapshot_option(snapshot: str | None) -> list[str]:
    if snapshot is None:
        return []
    return ["-l", f"snapshot.id={snapshot.replace(',', ',,')}"]


def _failure(what: str, done: Completed) -> InsufficientSpace | VolumeInUse | ToolFailed:
    said = done.stderr.strip() or done.stdout.strip()
    said = _CHAIN.sub("the image", said)
    last = said.splitlines()[-1][:500] if said else "no message"
    if tells_of_no_room(said):
        return InsufficientSpace(f"Cannot {what}: the storage is full (qemu-img: {last}). Free space and run again.")
    if "Failed to get" in said and "lock" in said:
        return VolumeInUse(f"Cannot {what}: another process has the image open (qemu-img: {last}).")
    if done.returncode < 0:
        return ToolFailed(f"Cannot {what}: qemu-img was ended by signal {-done.returncode}. {last}")
    return ToolFailed(f"Cannot {what}: qemu-img failed with exit code {done.returncode}: {last}", rc=done.returncode)
