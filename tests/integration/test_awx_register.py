# Copyright: Contributors to the hypervisor.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook that registers everything in AWX, with awx.awx's own modules and a server that remembers what it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from support.runs import REPO, environment

DEFINITIONS = sorted((REPO / "extensions" / "awx" / "job_templates").glob("*.yml"))


class Remembering(BaseHTTPRequestHandler):
    """As much of AWX's interface as the modules ask for: lists that can be searched, items, and surveys of items."""

    protocol_version = "HTTP/1.1"
    items: dict[str, list[dict]]
    surveys: dict[str, dict]
    writes: list[str]

    def log_message(self, *_ignored):
        pass

    def answer(self, body, status=200):
        data = b"" if status == 204 else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-API-Product-Name", "AWX")
        self.send_header("X-API-Product-Version", "24.6.1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def parts(self):
        url = urlsplit(self.path)
        return url.path.strip("/").split("/")[2:], {key: values[0] for key, values in parse_qs(url.query).items()}

    def body(self):
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")

    def item(self, kind, number):
        return next(item for item in self.items[kind] if str(item["id"]) == number)

    def do_GET(self):
        path, query = self.parts()
        if not path:
            return self.answer({"current_version": "/api/v2/"})
        if path[2:] == ["survey_spec"]:
            return self.answer(self.surveys.get(path[1], {}))
        if len(path) > 2:
            found = [item for item in self.items["credentials"] if item["id"] in self.item(*path[:2])[path[2]]]
        elif len(path) == 2:
            return self.answer(self.item(*path))
        else:
            names = {query[key] for key in ("name", "or__name") if key in query}
            found = [item for item in self.items[path[0]] if not names or item["name"] in names]
        return self.answer({"count": len(found), "results": found, "next": None})

    def do_POST(self):
        path, _query = self.parts()
        body = self.body()
        self.writes.append(self.path)
        if path[2:] == ["survey_spec"]:
            self.surveys[path[1]] = body
            return self.answer({})
        if len(path) > 2:
            self.item(*path[:2])[path[2]].append(body["id"])
            return self.answer({}, 204)
        return self.answer(self.add(path[0], **body), 201)

    def do_PATCH(self):
        path, _query = self.parts()
        self.writes.append(self.path)
        self.item(*path).update(self.body())
        return self.answer(self.item(*path))

    @classmethod
    def add(cls, kind, **fields):
        number = len(cls.items[kind]) + 1
        url = f"/api/v2/{kind}/{number}/"
        related = {name: f"{url}{name}/" for name in ("survey_spec", "credentials")}
        cls.items[kind].append({"id": number, "type": kind[:-1], "url": url, "related": related, "summary_fields": {},
                                "credentials": [], "scm_revision": "", **fields})
        return cls.items[kind][-1]


@pytest.fixture
def awx():
    kinds = "organizations inventories credentials execution_environments projects job_templates".split()
    memory = type("Awx", (Remembering,), {"items": {kind: [] for kind in kinds}, "surveys": {}, "writes": []})
    memory.add("organizations", name="Default")
    memory.add("inventories", name="Hypervisors")
    memory.add("credentials", name="ssh")
    with ThreadingHTTPServer(("127.0.0.1", 0), memory) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        memory.url = f"http://127.0.0.1:{server.server_port}"
        yield memory
        server.shutdown()


def register(awx, *arguments):
    collections = os.environ.get("ANSIBLE_COLLECTIONS_PATH") or environment()["ANSIBLE_COLLECTIONS_PATH"]
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", *arguments,
         "-e", f"ansible_python_interpreter={sys.executable}", "hypervisor.storage.awx_register"],
        capture_output=True, text=True, timeout=120, check=False,
        env=environment(
            ANSIBLE_COLLECTIONS_PATH=collections, CONTROLLER_HOST=awx.url, CONTROLLER_OAUTH_TOKEN="t", no_proxy="127.0.0.1"
        ),
    )
    return done.returncode, done.stdout + done.stderr


def test_registered_and_again(awx):
    wishes = ["-e", "awx_register_inventory=Hypervisors", "-e", "awx_register_credentials=ssh",
              "-e", "awx_register_image=registry.example.com/ee"]
    code, said = register(awx, *wishes)
    assert code == 0, said
    (environment_,), (project,) = awx.items["execution_environments"], awx.items["projects"]
    assert environment_["image"] == "registry.example.com/ee" and project["scm_url"].startswith("https://")
    wanted = [yaml.safe_load(path.read_text()) for path in DEFINITIONS]
    assert [t["name"] for t in awx.items["job_templates"]] == [w["name"] for w in wanted]
    for template, definition in zip(awx.items["job_templates"], wanted):
        assert template["playbook"] == definition["playbook"] and template["project"] == project["id"]
        assert template["execution_environment"] == environment_["id"] and template["credentials"] == [1]
        assert template["become_enabled"] is template["survey_enabled"] is template["ask_job_type_on_launch"] is True
        # Hosts that share storage have to be asked together, and one job after the other.
        assert template["job_slice_count"] == 1
        assert template["allow_simultaneous"] is template["ask_limit_on_launch"] is False
        assert awx.surveys[str(template["id"])]["spec"] == definition["survey"]

    awx.writes.clear()
    code, said = register(awx, *wishes)
    assert code == 0 and "changed=0" in said, said
    assert awx.writes == []


def test_inventory_has_to_be_named(awx):
    code, said = register(awx)
    assert code != 0 and "awx_register_inventory" in said
    assert awx.writes == []
