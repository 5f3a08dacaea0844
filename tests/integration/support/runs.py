# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules and playbooks run as real processes, and the checks every run has to pass."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from support.forks import Forked

MODULES = "ansible_collections.hypervisor.storage.plugins.modules"
REPO = Path(__file__).resolve().parents[3]

REASONS = frozenset((
    "connection_failed", "pool_not_found", "pool_inactive", "volume_not_found", "volume_mismatch", "volume_in_use",
    "volume_has_dependents", "template_not_found", "snapshot_not_found", "insufficient_space", "shrink_refused",
    "invalid_name", "invalid_size", "invalid_option", "unsafe_image", "unsupported", "locked", "tool_missing",
    "tool_failed", "libvirt_error",
))
VOLUME_KEYS = frozenset((
    "name", "uuid", "key", "path", "pool", "type", "format", "capacity", "allocation", "status", "attachments",
    "backing", "dependents", "snapshots", "encrypted", "cluster_size", "compat",
))

Result = dict[str, Any]


@functools.cache
def collections_path() -> Path:
    """A directory through which Python and Ansible find this checkout as hypervisor.storage."""
    root = Path(tempfile.mkdtemp(prefix="hs-collections-"))
    atexit.register(shutil.rmtree, root)
    link = root / "ansible_collections" / "hypervisor" / "storage"
    link.parent.mkdir(parents=True)
    link.symlink_to(REPO)
    return root


def environment(**extra: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "LIBVIRT_"))}
    root = str(collections_path())
    # /dev/kvm may be there and still not run a guest: libguestfs is not to find that out in every test.
    env["LIBGUESTFS_BACKEND_SETTINGS"] = "force_tcg"
    return {**env, "LC_ALL": "C.UTF-8", "PYTHONPATH": root, "ANSIBLE_COLLECTIONS_PATH": root, **extra}


def start_module(
    module: str, params: dict[str, Any], *, check: bool = False, diff: bool = False, env: dict[str, str] | None = None,
    prefix: Iterable[str] = (),
) -> subprocess.Popen[str]:
    """The module as a process of its own, in a session of its own, its arguments already fed.

    What runs under a prefix may see other files under the names of libvirt's, or be able to write but half of one: it leaves
    Python's compiled files, which all runs share, as they are. (CPython takes a short write there for a whole one: issue 126606.)
    """
    env = env or environment()
    if prefix:
        env = {**env, "PYTHONDONTWRITEBYTECODE": "1"}
    with _fed(module, params, check=check, diff=diff) as feed:
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", f"{MODULES}.{module}"],
            stdin=feed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", start_new_session=True,
            env=env, preexec_fn=_hear_interrupts)


def altered(code: str, *arguments: str) -> list[str]:
    """A prefix for start_module(): the module as it is, but after this code, which finds the arguments in ``sys.argv[1:]``."""
    run = "import runpy\nsys.argv = sys.argv[-1:]\nrunpy.run_module(*sys.argv, run_name='__main__', alter_sys=True)"
    names = "_running, _errors, _image_locks, _libvirt, _live, _locks"
    known = f"from ansible_collections.hypervisor.storage.plugins.module_utils import {names}"
    return [sys.executable, "-c", "\n".join(("import os, sys, time", known, code, run)), *arguments]


@contextlib.contextmanager
def _fed(module: str, params: dict[str, Any], *, check: bool, diff: bool) -> Iterator[IO[str]]:
    """What a module reads: its arguments, as Ansible hands them over."""
    arguments = {**params, "_ansible_check_mode": check, "_ansible_diff": diff, "_ansible_module_name": module,
                 "_ansible_remote_tmp": tempfile.gettempdir(), "_ansible_keep_remote_files": False}
    with tempfile.TemporaryFile("w+") as feed:
        json.dump({"ANSIBLE_MODULE_ARGS": arguments}, feed)
        feed.seek(0)
        yield feed


def _hear_interrupts() -> None:
    """Whoever runs the tests in the background may have made them deaf to this signal, which is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def go_on(process: subprocess.Popen[str]) -> None:
    """Wake a run that was stopped; more than once, since a child that was just being made may stop after the first call."""
    for pause in (0, 0.05, 0.2):
        time.sleep(pause)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)


def finish_module(process: subprocess.Popen[str] | Forked, timeout: float = 60, *, quiet: bool = True) -> Result:
    """The one JSON it printed; anything beside it (unless not ``quiet``: on stderr), or a traceback, fails the test."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        raise AssertionError(f"the module did not end within {timeout} s: {out}{err}") from None
    assert "Traceback" not in out and (err == "" or not quiet), f"{out}\n{err}"
    result: Result = json.loads(out)
    failed = bool(result.get("failed"))
    assert process.returncode == int(failed), (process.returncode, result)
    if failed:
        assert result["msg"].strip(), result
        assert result.get("reason", "invalid_option") in REASONS, result
    result["warnings"] = [w if isinstance(w, str) else json.dumps(w) for w in result.get("warnings", [])]
    for described in result.get("volumes") or []:
        assert set(described) == VOLUME_KEYS, described
        sizes = [described["capacity"], described["allocation"], described["cluster_size"] or 0]
        sizes += [snapshot["vm_state_size"] for snapshot in described["snapshots"]]
        assert all(isinstance(size, int) for size in sizes), described
        assert described["status"] == ("attached" if described["attachments"] else "available"), described
    return result


def run_module(
    module: str, params: dict[str, Any], *, timeout: float = 60, check: bool = False, diff: bool = False, **how: Any
) -> Result:
    """Run a module to its end; in a process that has Ansible and libvirt loaded, unless it is to be run in a way of its own."""
    if any(value is not None for value in how.values()):
        return finish_module(start_module(module, params, check=check, diff=diff, **how), timeout)
    with _fed(module, params, check=check, diff=diff) as feed:
        return finish_module(Forked(f"{MODULES}.{module}", feed, environment()), timeout)


def look_at(directories: Iterable[Path]) -> dict[str, tuple[Any, ...]]:
    """Everything in the directories that a check mode run could disturb."""
    seen: dict[str, tuple[Any, ...]] = {}
    for top in directories:
        for path in (top, *sorted(top.rglob("*"))):
            st = path.lstat()
            body = ""
            if stat.S_ISREG(st.st_mode) and st.st_size <= 1024**2:
                body = hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(st.st_mode):
                body = os.readlink(path)
            rights, place = (oct(st.st_mode), st.st_uid, st.st_gid), (st.st_ino, st.st_size, st.st_blocks)
            seen[str(path)] = (*rights, *place, st.st_mtime_ns, body)
    return seen


def run_play(
    tasks: list[dict[str, Any]], *, play: dict[str, Any] | None = None, arguments: Iterable[str] = (),
    python: str = sys.executable, prefix: Iterable[str] = (), timeout: float = 120, **env: str,
) -> dict[str, Any]:
    """Run the tasks on localhost through the real ansible-playbook; what they registered, by name."""
    with tempfile.TemporaryDirectory() as tmp:
        registered = [t["register"] for t in tasks if "register" in t]
        report = {"name": "Report", "check_mode": False, "ansible.builtin.copy": {
            "dest": f"{tmp}/out.json", "mode": "0600",
            "content": "{{ {" + ", ".join(f"'{r}': {r}" for r in registered) + "} | to_json }}"}}
        book = Path(tmp, "play.yml")
        book.write_text(json.dumps([{
            "hosts": "localhost", "connection": "local", "gather_facts": False,
            "vars": {"ansible_python_interpreter": python}, **(play or {}), "tasks": [*tasks, report]}]))
        argv = [*prefix, _beside("ansible-playbook"), "-i", "localhost,", *arguments, str(book)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False, env=environment(**env))
        assert done.returncode == 0, done.stdout + done.stderr
        results: dict[str, Any] = json.loads(Path(tmp, "out.json").read_text())
        return results


def run_adhoc(module: str, arguments: str, *options: str, python: str = sys.executable, **env: str) -> Result:
    """``ansible localhost -m module -a arguments``, as a person types it."""
    here = "localhost -i localhost, -c local -e".split()
    argv = [_beside("ansible"), *here, f"ansible_python_interpreter={python}"]
    argv += ["-m", f"hypervisor.storage.{module}", "-a", arguments, *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=environment(**env))
    start = done.stdout.find("=> {")
    assert start >= 0, done.stdout + done.stderr
    result: Result = json.JSONDecoder().raw_decode(done.stdout, start + 3)[0]
    return result


def _beside(program: str) -> str:
    """The program of the same environment as the interpreter that runs the tests."""
    return str(Path(sys.executable).parent / program)
