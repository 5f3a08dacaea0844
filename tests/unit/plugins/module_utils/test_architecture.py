# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rules of docs/architecture.md, read off the code itself."""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.hypervisor.storage.plugins.module_utils import _args, _errors, _runner

yaml = pytest.importorskip("yaml")

PLUGINS = Path(_errors.__file__).resolve().parent.parent
UTILS = sorted((PLUGINS / "module_utils").glob("*.py"))
MODULES = sorted(path for path in (PLUGINS / "modules").glob("*.py") if path.name != "__init__.py")
MODULE_LINES = ("#!/usr/bin/python", "# -*- coding: utf-8 -*-")
FRAGMENTS = PLUGINS / "doc_fragments" / "common.py"
ALL = [*UTILS, *MODULES, FRAGMENTS]

#: Which file is in which layer ...
LAYERS = {
    "words": "_named_tuple _errors _os_errors _model _names _size _formats _foreign_header _snapshot_table _image_header _steps _plans",
    "decisions": (
        "_plan_image _plan_capacity _plan_create _plan_existing _plan_grow _plan_delete _plan_clone _plan_space _plan_compress _requests"
    ),
    "gateways": (
        "_xml _libvirt _pool_changes _running _directory _locks _image_locks _staging _chains _domains _landlock _qemu_img _libguestfs "
        "_pool_tools _rbd _side_by_side _extents _clusters _holes _samples"
    ),
    "sight": "_inventory _ceph _facts _describe _refresh",
    "deeds": (
        "_trust _sources _pinned _space _leftovers _held_image _live _copy _grow _without_files _new_file _create_empty _create_copy "
        "_delete _apply _apply_volume _apply_resize _apply_clone"
    ),
    "use cases": (
        "_named_volumes _ensure_volume _resize_volume _clone_volume _compress_volume _find_volumes"
    ),
    "runner": "_runner _lifecycle",
    "options": "_args",
    "first": "_process",
}
#: ... and which layers it may import from.
MAY_IMPORT = {
    "words": {"words"},
    "decisions": {"words", "decisions"},
    "gateways": {"words", "gateways"},
    "sight": {"words", "gateways", "sight"},
    "deeds": {"words", "decisions", "gateways", "sight", "deeds"},
    "use cases": {"words", "decisions", "gateways", "sight", "deeds", "use cases"},
    "runner": {"runner", "first", "words", "decisions", "gateways", "sight"},
    "options": {"first"},
    "first": set(),
    "modules": {"use cases", "runner", "options"},
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}

#: Libraries for one file alone, each with the reason why.
ONLY_FOR = {
    "libvirt": {"_libvirt", "_pool_changes", "_running"},
    "libvirt_qemu": {"_libvirt"},
    "xml": {"_xml"},
    "subprocess": {"_qemu_img"},
    "ansible": {"_runner", "_args"},
    "pwd": {"_requests"},
    "grp": {"_requests"},
    "socket": {"_libvirt"},
}
#: Who starts processes: tools in one place, and a guardian that thaws a guest if its maker is killed.
PROCESSES = {"_qemu_img": {"Popen"}, "_live": {"fork"}}
#: What thinks, and neither looks nor acts, gets along with these.
PURE = {"__future__", "collections", "contextlib", "typing", "re", "hashlib", "unicodedata"}

by_name = pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """All imports of a file, wherever they stand: ("own", file of module_utils) or ("library", top package)."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (("library", alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 1 or module.startswith("ansible_collections.hypervisor.storage.plugins.module_utils"):
                inner = module if node.level else module.partition(".module_utils")[2].lstrip(".")
                names = [inner] if inner else [alias.name for alias in node.names]
                yield from (("own", name) for name in names)
                if inner == "_libvirt" and any(alias.name == "binding" for alias in node.names):
                    yield "library", "libvirt"
            else:
                assert node.level == 0, f"{path.name} reaches out of its directory"
                yield "library", module.partition(".")[0]


def libraries(path: Path) -> set[str]:
    return {name for kind, name in imports(path) if kind == "library"}


def own(path: Path) -> set[str]:
    return {name for kind, name in imports(path) if kind == "own"}


# -- who knows whom --------------------------------------------------------------------------------


def test_every_file_has_its_layer() -> None:
    assert {path.stem for path in UTILS if path.stem != "__init__"} == set(LAYER_OF)


@by_name
def test_nothing_imports_upward(path: Path) -> None:
    layer = LAYER_OF.get(path.stem, "modules")
    wrong = {name for name in own(path) if LAYER_OF[name] not in MAY_IMPORT[layer]}
    assert not wrong, f"{path.name} ({layer}) must not know {wrong}"


def test_nobody_knows_himself_in_a_circle() -> None:
    known = {path.stem: own(path) for path in UTILS}
    while known:
        free = {name for name, others in known.items() if not others & set(known)}
        assert free, f"a circle among {sorted(known)}"
        for name in free:
            del known[name]


def imported_at_once(path: Path) -> set[str]:
    """What of module_utils comes along when a file is imported, without the imports inside its functions."""
    found: set[str] = set()
    queue = [path]
    while queue:
        body = parse(queue.pop()).body
        for node in body:
            if isinstance(node, ast.ImportFrom) and (node.level or "hypervisor.storage" in (node.module or "")):
                inner = (node.module or "") if node.level else (node.module or "").partition(".module_utils")[2].lstrip(".")
                new = ({inner} if inner else {alias.name for alias in node.names}) - found
                found |= new
                queue += [PLUGINS / "module_utils" / f"{name}.py" for name in new]
    return found


@pytest.mark.parametrize("name", ["volume", "volume_info", "volume_resize"])
def test_a_run_that_changes_nothing_imports_no_hands(name: str) -> None:
    """Ansible sends source, so each run compiles what it imports: the hands wait until there is something to do."""
    hands = set(LAYERS["deeds"].split()) | {
        "_staging", "_landlock", "_qemu_img", "_libguestfs", "_pool_tools", "_clusters", "_holes", "_foreign_header",
        "_steps", "_plan_create", "_plan_grow", "_plan_delete", "_plan_clone", "_plan_compress", "_plan_space", "_plan_capacity",
        "_image_locks", "_pool_changes", "_running", "_snapshot_table", "_ceph", "_facts",
    }  # fmt: skip
    found = imported_at_once(PLUGINS / "modules" / f"{name}.py")
    assert {"_runner", "_inventory", "_libvirt"} <= found
    assert not found & hands


def sent_with(name: str) -> set[str]:
    """What of module_utils Ansible sends with a module: all that is imported anywhere in it."""
    found: set[str] = set()
    queue = [PLUGINS / "modules" / f"{name}.py"]
    while queue:
        new = own(queue.pop()) - found
        found |= new
        queue += [PLUGINS / "module_utils" / f"{name}.py" for name in new]
    return found


#: Files of which a module has no use: Ansible would read, pack and send them with each of its tasks.
NOT_FOR = {
    "volume": (
        "_live _apply_resize _apply_clone _clone_volume _compress_volume _plan_clone _plan_compress _holes _samples _held_image "
        "_clusters _libguestfs"
    ),
    "volume_info": "_image_locks _named_volumes _staging _apply _apply_volume _running _live _sources _trust _space _grow _delete",
    "volume_resize": (
        "_live _copy _create_copy _create_empty _new_file _delete _sources _apply_volume _apply_clone _plan_create "
        "_plan_clone _plan_compress _holes _samples _held_image _clusters _libguestfs"
    ),
    "volume_clone": (
        "_create_empty _delete _grow _apply_volume _apply_resize _plan_grow _plan_compress _compress_volume _samples _held_image "
        "_libguestfs _ensure_volume _plan_existing"
    ),
    "volume_compress": (
        "_live _copy _create_copy _create_empty _delete _grow _apply _apply_volume _apply_resize _apply_clone _plan_create "
        "_plan_clone _plan_grow _ensure_volume"
    ),
}


@pytest.mark.parametrize("name", sorted(NOT_FOR))
def test_no_module_is_sent_the_hands_of_another(name: str) -> None:
    assert set(NOT_FOR) == {path.stem for path in MODULES}
    assert sorted(sent_with(name) & set(NOT_FOR[name].split())) == []


@pytest.mark.parametrize("name", ["_apply", "_create_empty", "_space"])
def test_what_makes_an_empty_volume_imports_no_other_hands(name: str) -> None:
    """Nor does a volume that is raw need qemu-img."""
    others = {"_copy", "_live", "_grow", "_create_copy", "_without_files", "_delete", "_pinned", "_qemu_img", "_clusters", "_holes"}
    found = imported_at_once(PLUGINS / "module_utils" / f"{name}.py")
    assert "_inventory" in found
    assert not found & others


@by_name
def test_libraries_that_are_for_one_file_alone(path: Path) -> None:
    for library in libraries(path) & set(ONLY_FOR):
        assert path.stem in ONLY_FOR[library], f"{path.name} must not import {library}"


@pytest.mark.parametrize("name", [*LAYERS["decisions"].split(), "_steps", "_model", "_formats", "_names", "_size", "_errors"])
def test_what_decides_is_pure(name: str) -> None:
    path = PLUGINS / "module_utils" / f"{name}.py"
    # Names of users and groups are looked up where options are read, and nowhere else.
    allowed = PURE | ({"os", "pwd", "grp"} if name == "_requests" else set())
    assert libraries(path) <= allowed
    called = {node.func.id for node in ast.walk(parse(path)) if isinstance(node, ast.Call) if isinstance(node.func, ast.Name)}
    assert not called & {"open", "print", "input", "exec", "eval", "__import__"}


def words(path: Path) -> set[str]:
    """Every name, attribute and text of the code, without its documentation."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


@pytest.mark.parametrize("word", ["AnsibleModule", "check_mode", "exit_json", "fail_json", "params"])
def test_words_of_the_runner_alone(word: str) -> None:
    users = {path.stem for path in [*UTILS, *MODULES] if word in words(path)}
    if word == "params":
        assert not users & {name for name, layer in LAYER_OF.items() if layer in ("gateways", "sight", "deeds", "words")}
    else:
        assert users == {"_runner"}


@by_name
def test_processes_are_started_where_it_is_known(path: Path) -> None:
    starters = {"system", "popen", "execv", "execve", "execvp", "spawnv", "posix_spawn", "fork", "Popen", "check_output"}
    used = {
        node.attr for node in ast.walk(parse(path)) if isinstance(node, ast.Attribute) and node.attr in starters
    }  # fmt: skip
    assert used == PROCESSES.get(path.stem, set())
    assert "shell" not in {keyword.arg for node in ast.walk(parse(path)) if isinstance(node, ast.Call) for keyword in node.keywords}


# -- how it is written -----------------------------------------------------------------------------


@by_name
def test_header(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines()[:5] if line not in MODULE_LINES]
    assert lines[:3] == [
        "# Copyright: Contributors to the hypervisor.storage collection",
        "# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)",
        "# SPDX-License-Identifier: GPL-3.0-or-later",
    ]
    assert "__future__" in libraries(path)


@by_name
def test_no_broad_except(path: Path) -> None:
    caught = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path.name}:{node.lineno}"
            caught.append(node.type)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            caught.extend(node.args)
    broad = {"Exception", "BaseException"}
    for expression in caught:
        assert not broad & {each.id for each in ast.walk(expression) if isinstance(each, ast.Name)}, (
            f"{path.name}:{expression.lineno}"
        )


@by_name
def test_no_assert_decides(path: Path) -> None:
    assert not [node.lineno for node in ast.walk(parse(path)) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("path", [path for path in UTILS if path.stem != "__init__"], ids=lambda path: path.name)
def test_files_and_their_open_parts_say_what_they_are_for(path: Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree)
    silent = [
        node.name
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        if ast.get_docstring(node) is None
        and not any("StorageError" in ast.unparse(base) for base in getattr(node, "bases", ()))
        and not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        and not any(ast.unparse(base) == "NamedTuple" for base in getattr(node, "bases", ()))
    ]
    assert silent == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_modules_are_documentation_and_one_call(path: Path) -> None:
    tree = parse(path)
    docs = [
        node for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("DOCUMENTATION", "EXAMPLES", "RETURN")
    ]  # fmt: skip
    assert len(docs) == 3
    (utils,) = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
    assert utils.names[0].name == "_args", "it keeps the files after it from being compiled twice"
    (main,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert main.name == "main"
    (call,) = main.body
    assert ast.unparse(call).startswith("_runner.run_")
    assert len(main.body) == 1
    hidden = {number for node in docs for number in range(node.lineno, (node.end_lineno or 0) + 1)}
    code = [
        line
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if number not in hidden and line.strip() and not line.startswith("#")
    ]
    assert len(code) <= 60


def test_a_main_grows_with_its_options_alone() -> None:
    """Beside the lines that each state one option, it fits 15 lines."""
    for path in MODULES:
        (main,) = [node for node in parse(path).body if isinstance(node, ast.FunctionDef)]
        options = [
            keyword.lineno
            for node in ast.walk(main) if isinstance(node, ast.Call)
            for keyword in node.keywords if isinstance(keyword.value, ast.Call) and keyword.arg != "argument_spec"
        ]  # fmt: skip
        assert (main.end_lineno or 0) - main.lineno + 1 - len(set(options)) <= 15, path.name


# -- documentation and argument specs say the same -------------------------------------------------


def constants(path: Path) -> dict[str, Any]:
    """The YAML texts of a file, by their names, also inside its class."""
    return {
        ast.unparse(node.targets[0]): yaml.safe_load(node.value.value)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if ast.unparse(node.targets[0]).isupper()
    }


FACETS = {"type": "str", "elements": None, "required": False, "choices": None, "default": None}


def facets(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What documentation and spec both say of each option."""
    return {
        name: {facet: option.get(facet, absent) for facet, absent in FACETS.items()} for name, option in options.items()
    }


@pytest.mark.parametrize(
    ("fragment", "spec"),
    [
        ("DOCUMENTATION", _args.connection_options()),
        ("POOL", _args.pool_options()),
        ("NAME", _args.name_options()),
        ("RIGHTS", _args.rights_options()),
        ("CREATION", {k: v for k, v in _args.creation_options().items() if k not in _args.rights_options()}),
    ],
)
def test_fragments_of_documentation_and_of_specs_agree(fragment: str, spec: dict[str, Any]) -> None:
    assert facets(constants(FRAGMENTS)[fragment]["options"]) == facets(spec)


def documented_options(path: Path) -> dict[str, Any]:
    documentation = constants(path)["DOCUMENTATION"]
    merged: dict[str, Any] = {name: dict(option) for name, option in documentation["options"].items()}
    for reference in documentation["extends_documentation_fragment"]:
        collection, _dot, part = reference.partition("hypervisor.storage.common")
        assert collection == ""
        fragment = constants(FRAGMENTS)[part.lstrip(".").upper() or "DOCUMENTATION"]
        for name, option in fragment["options"].items():
            merged[name] = {**option, **merged.get(name, {})}
    return merged


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_options_are_documented_as_they_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"ansible_collections.hypervisor.storage.plugins.modules.{path.stem}")
    specs: list[dict[str, Any]] = []
    for runner in ("run_lifecycle", "run_lookup"):
        monkeypatch.setattr(_runner, runner, lambda argument_spec, **_others: specs.append(argument_spec))
    module.main()
    documented = documented_options(path)
    assert facets(documented) == facets(specs[0])
    assert all(option["description"] for option in documented.values())
    assert constants(path)["DOCUMENTATION"]["module"] == path.stem


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_examples_use_options_that_exist(path: Path) -> None:
    known = documented_options(path)
    for task in constants(path)["EXAMPLES"]:
        for action, arguments in task.items():
            if action == f"hypervisor.storage.{path.stem}":
                assert set(arguments or {}) <= set(known)
                assert not set(known) & (set(task) - {"name"}), "an option at the level of the task"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_results_are_documented_alike(path: Path) -> None:
    result = constants(path)["RETURN"]
    assert {"volumes", "reason"} <= set(result)
    assert result["volumes"]["contains"] == constants(MODULES[0])["RETURN"]["volumes"]["contains"]


def test_the_action_group_holds_every_module() -> None:
    runtime = yaml.safe_load((PLUGINS.parent / "meta" / "runtime.yml").read_text(encoding="utf-8"))
    assert sorted(runtime["action_groups"]["storage"]) == [path.stem for path in MODULES]
