# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Row 12: where each module's time goes, from its real payload."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from .. import images
from ..measure import Failure, Series, sh
from ..place import REPO, a_place, remove
from ..plays import PYTHON, Task, ours, run_play
from ..results import Line, Spread, Table
from .scale import MIB, Scale

DRIVE = REPO / "benchmarks" / "drive.py"
WHOLE, UNPACK, REST = "the whole process", "unpack the payload", "rest (arguments, end of Python)"
ORDER = ("start Python", UNPACK, "import the standard library", "import Ansible's module_utils", "import libvirt", "import the collection",
         "connect", "lock and tidy", "look and decide", "act", "refresh", "look again", "report", REST)
VOLUMES, MANY = 200, 50


def measure(scale: Scale) -> Iterator[Table]:
    size = scale.pick(256 * MIB, 32 * MIB)
    with a_place() as place:
        directory = place.ext4(4 * size) / "images"
        uri = {"uri": place.hypervisor.uri}
        pool = place.hypervisor.pool("default", directory)
        sh("qemu-img", "create", "-q", "-f", "qcow2", directory / "v0", "1M")
        for number in range(1, VOLUMES):
            shutil.copyfile(directory / "v0", directory / f"v{number}")
        images.write_half_zeros(directory / "master", size, run=MIB)
        made = [f"n{number}" for number in range(MANY)]
        tasks: dict[str, Task] = {
            "volume, nothing to do": ours("volume", **uri, name="v0", size="1M"),
            "volume_info, one volume": ours("volume_info", **uri, pool="default", name="v0"),
            "volume_resize, nothing to do": ours("volume_resize", **uri, name="v0", size="1M"),
            f"volume_info, all {VOLUMES} volumes": ours("volume_info", **uri, pool="default"),
            f"volume, {MANY} copy-on-write volumes": ours("volume", **uri, name=made, template="v0"),
            f"volume_clone, qcow2, {size // MIB} MiB": ours("volume_clone", **uri, source="master", name="copy"),
            f"volume_compress, zeros of {size // MIB} MiB": ours("volume_compress", **uri, name="work", method="zeros"),
        }

        def tidy() -> None:
            remove(directory / "copy", *(directory / name for name in made))
            shutil.copyfile(directory / "master", directory / "work")
            pool.refresh()

        for title, task in tasks.items():
            tidy()
            yield _measure_one(title, task, place.root, tidy, scale.rounds + 2)


def _measure_one(title: str, task: Task, root: Path, tidy: object, rounds: int) -> Table:
    payload = _payload(task, root)
    module = next(iter(task)).rpartition(".")[2]
    unpacked = _unpack(payload)
    seconds: dict[str, list[float]] = {name: [] for name in (WHOLE, *ORDER)}
    for _round in range(rounds):
        tidy()  # type: ignore[operator]
        whole, _said = _run([PYTHON, payload])
        tidy()  # type: ignore[operator]
        driven, said = _run([PYTHON, DRIVE, unpacked, module, str(time.monotonic())])
        spent = json.loads(said.strip().splitlines()[-1])
        spent[REST] = driven - sum(spent.values())
        spent[UNPACK] = max(whole - driven, 0.0)
        seconds[WHOLE].append(driven + spent[UNPACK])
        for name in ORDER:
            seconds[name].append(spent.get(name, 0.0))
    series = {name: Series(tuple(values)) for name, values in seconds.items() if any(values)}
    table = Table(title, WHOLE, [])
    for name, each in series.items():
        table.lines.append(Line(name, "ours" if name == WHOLE else "peer", Spread.of(each / series[WHOLE]), Spread.of(each)))
    table.remarks.append(f"Payload: {payload.stat().st_size / 1024:.0f} KiB.")
    shutil.rmtree(payload.parent)
    return table


def _payload(task: Task, root: Path) -> Path:
    """What Ansible sends for the task, left where it was run."""
    kept = root / "kept"
    os.environ.update(ANSIBLE_KEEP_REMOTE_FILES="1", ANSIBLE_REMOTE_TEMP=str(kept))
    try:
        run_play(root, [{**task, "check_mode": True}], changed=None)
    finally:
        del os.environ["ANSIBLE_KEEP_REMOTE_FILES"]
        os.environ["ANSIBLE_REMOTE_TEMP"] = str(REPO / ".work" / "ansible" / "tmp")
    found = list(kept.rglob("AnsiballZ_*.py"))
    if len(found) != 1:
        raise Failure(f"the play left {len(found)} payloads")
    return found[0]


def _unpack(payload: Path) -> Path:
    """The payload's files in a directory, and its arguments; not in check mode."""
    sh(PYTHON, payload, "explode")
    unpacked = payload.parent / "debug_dir"
    arguments = json.loads((unpacked / "args").read_text())
    arguments["ANSIBLE_MODULE_ARGS"]["_ansible_check_mode"] = False
    (unpacked / "args").write_text(json.dumps(arguments))
    return unpacked


def _run(argv: list[object]) -> tuple[float, str]:
    """Seconds of a process that must end well, and what it said on stderr. What is in a payload is compiled each time."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    began = time.monotonic()
    done = subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, check=False)
    seconds = time.monotonic() - began
    if done.returncode != 0:
        raise Failure(f"the module gave {done.returncode}: {(done.stdout + done.stderr)[-600:]}")
    return seconds, done.stderr
