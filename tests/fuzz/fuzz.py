# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Coverage-guided fuzzing of the readers in ``tests/unit/fuzz_targets.py`` with Atheris (``./dev fuzz [SECONDS]``).

``fuzz.py DIRECTORY SECONDS`` runs all targets, each in a process of its own, and then keeps the smallest input of each
kind that was met: ``tests/fuzz/corpus/TARGET`` has one input a line, packed. A unit test asks them all again.
``fuzz.py DIRECTORY SECONDS TARGET`` is such a process.
"""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ansible_collections.hypervisor.storage.plugins.module_utils"]):
    from ansible_collections.hypervisor.storage.tests.unit import fuzz_targets

CORPUS = Path(__file__).parent / "corpus"
#: Of the time, how much each target gets: there is much more to a header than to a name.
SHARES = {"header": 0.7, "size": 0.15, "name": 0.15}
#: Longer inputs are slower, and headers are short.
LONGEST = {"header": 8192, "size": 80, "name": 300}
QCOW2_OPTIONS = [
    "", "compat=0.10", "cluster_size=512", "cluster_size=512,compat=0.10", "cluster_size=2M", "lazy_refcounts=on",
    "cluster_size=512,refcount_bits=1", "refcount_bits=64", "extended_l2=on", "compression_type=zstd",
    "backing_file=base,backing_fmt=qcow2", "cluster_size=512,backing_file=base,backing_fmt=raw",
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "data_file=other",
]  # fmt: skip
SIZES = ["1", "1.5G", "10 GiB", "0.5 KB", "9223372036854775807", "-1", "+10G", "NaN", "1e3", "0", "", "1,5G", "\N{ARABIC-INDIC DIGIT ONE}G"]
NAMES = ["a", "-a", "a b", "a'\"<&>", "a:b", "a%s", "\N{SNOWMAN}", ".", "..", "a/b", "a\nb", "x" * 256, ".hypervisor.storage-x", "\ufffe"]


def seeds(target: str) -> Iterator[bytes]:
    """What every run begins with: images as qemu-img makes them, and texts of all sorts."""
    if target != "header":
        yield from (text.encode("utf-8", "surrogatepass") for text in (SIZES if target == "size" else NAMES))
        return
    with tempfile.TemporaryDirectory() as place:
        image = Path(place) / "image"

        def run(*arguments: str, sure: bool = True) -> bool:
            return subprocess.run(["qemu-img", *arguments], cwd=place, check=sure, stdout=subprocess.DEVNULL).returncode == 0

        run("create", "-q", "-f", "qcow2", "base", "64K")
        for options in QCOW2_OPTIONS:
            secret = ("--object", "secret,id=s,data=x") if "encrypt" in options else ()
            arguments = [*secret, "-f", "qcow2", "-u", *(("-o", options) if options else ()), "image", "64K"]
            # LUKS measures the processor, which fails on a busy machine.
            if not run("create", "-q", *arguments, sure=not secret):
                continue
            yield fuzz_targets.pack_image(image.read_bytes())
            if "encrypt" in options or "data_file" in options or "backing" in options:
                continue
            run("snapshot", "-c", "one", "image")
            yield fuzz_targets.pack_image(image.read_bytes())
            if "compat=0.10" not in options:
                run("bitmap", "--add", "image", "b")
                yield fuzz_targets.pack_image(image.read_bytes())
        for other in ("vmdk", "vdi", "vhdx", "vpc", "qed", "parallels", "qcow", "raw"):
            run("create", "-q", "-f", other, "image", "1M")
            yield fuzz_targets.pack_image(image.read_bytes()[:8192])


def read_kept(target: str) -> list[bytes]:
    path = CORPUS / target
    return fuzz_targets.unpack_corpus(path.read_text()) if path.exists() else []


def spread(target: str, data: bytes, max_size: int, seed: int) -> bytes:
    """A step of Atheris' own, or for headers one that puts an edge of a range into a field."""
    chance = random.Random(seed)
    if target == "header" and chance.random() < 0.5 and len(data) > 40:
        number = chance.choice([0, 1, 2, 9, 21, 511, 512, 65536, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, chance.getrandbits(64)])
        at, fmt = 4 + 4 * chance.randrange(40), chance.choice([">I", ">Q"])
        field = struct.pack(fmt, number % 2 ** (32 if fmt == ">I" else 64))
        data = data[:at].ljust(at, b"\0") + field + data[at + len(field) :]
        return data[:max_size]
    return bytes(atheris.Mutate(data, max_size))


def run_target(target: str, directory: Path, seconds: int) -> None:
    """Fuzz for so long; ends the process, with the input that failed in the directory if one did."""
    check = fuzz_targets.TARGETS[target]
    asked: set[fuzz_targets.Kind] = set()

    def test_one(data: bytes) -> None:
        if target != "header":
            check(data)
            return
        kind = fuzz_targets.check_header(data, ask_qemu=False)
        # QEMU takes as long as hundreds of inputs; it is asked about every kind, and now and then again.
        if kind not in asked or random.random() < 0.002:
            asked.add(kind)
            fuzz_targets.check_header(data)

    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", f"-max_len={LONGEST[target]}", "-timeout=60", "-print_final_stats=1",
         f"-artifact_prefix={directory}/failed-{target}-", str(directory / target)],
        test_one, custom_mutator=lambda data, size, seed: spread(target, data, size, seed))  # fmt: skip
    atheris.Fuzz()


def keep_smallest(target: str, inputs: list[bytes]) -> int:
    """Write the smallest input of each kind to the corpus of the repository; how many there are."""
    found: dict[fuzz_targets.Kind, bytes] = {}
    for data in sorted(inputs, key=lambda data: (len(data), data)):
        found.setdefault(fuzz_targets.TARGETS[target](data), data)
    kept = [data for data in found.values() if len(data) <= LONGEST[target]]
    (CORPUS / target).write_text(fuzz_targets.pack_corpus(kept))
    return len(kept)


def main() -> int:
    directory, seconds = Path(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        run_target(sys.argv[3], directory, seconds)
    for target, share in SHARES.items():
        place = directory / target
        place.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate([*seeds(target), *read_kept(target)]):
            (place / f"seed-{number}").write_bytes(data)
        span = max(1, round(seconds * share))
        print(f"{target}: {span} s", flush=True)
        if subprocess.run([sys.executable, __file__, str(directory), str(span), target], check=False).returncode != 0:
            print(f"{target} failed; the input is in {directory}", file=sys.stderr)
            return 1
        kinds = keep_smallest(target, [path.read_bytes() for path in place.iterdir()])
        print(f"{target}: {kinds} kinds of inputs kept in tests/fuzz/corpus/{target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
