"""The receivers in results.md, run as they stand there: they prove the signature, post to Slack, and write to a CRM."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from shared.deadline import ClaimClock
from shared.results import post
from tests.sandbox.serve import Server, free_port
from tests.unit.deployment import code_blocks, page
from tests.unit.examples import SECRET, settings

GUIDE = page("results.md")
EVENT = code_blocks(GUIDE, "json")[0]
OTHER = "whsec_bmV3ZXIgYW5kIG5ld2VyIGFuZCBuZXdlciBhbmQgbmV3ZXI="
# Deno's part of the Edge Function, for Node: its server, and its environment.
DENO = """
import { createServer } from "node:http";
globalThis.Deno = {
  env: { get: (name) => process.env[name] },
  serve: (handle) => createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const init = { method: request.method, headers: request.headers, body: Buffer.concat(chunks) };
    const answer = await handle(new Request("http://127.0.0.1/", init));
    response.writeHead(answer.status).end(Buffer.from(await answer.arrayBuffer()));
  }).listen(process.env.PORT, "127.0.0.1"),
};
"""


class Stranger:
    """Slack, or a CRM: keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str | None, Any]] = []
        self.status = 200

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/{path:.*}", self._take)
        return app

    async def _take(self, request: web.Request) -> web.Response:
        self.sent.append((request.path, request.headers.get("Authorization"), await request.json()))
        return web.Response(status=self.status)


@contextmanager
def example(name: str, folder: Path, slack: str) -> Iterator[str]:
    """The example as a process. -> its URL"""
    port = free_port()
    if name == "flask":
        (folder / "app.py").write_text(code_blocks(GUIDE, "python")[0])
        command = [sys.executable, "-m", "flask", "--app", "app", "run", "--port", str(port)]
    else:
        if (node := shutil.which("node")) is None:
            pytest.skip("there is no Node here to run the Edge Function")
        # Node 20 reads no types: they are taken out.
        code = re.sub(r"(?<=\w): (?:string|Headers|Request)\b|(?<=\))!", "", code_blocks(GUIDE, "ts")[0])
        (folder / "index.mjs").write_text(DENO + code)
        command = [node, "index.mjs"]
    environ = {"PATH": os.environ["PATH"], "PORT": str(port), "RESULT_SECRET": SECRET, "SLACK_URL": slack}
    with (folder / "log").open("wb") as log, subprocess.Popen(command, cwd=folder, env=environ, stderr=log) as process:
        try:
            url, end = f"http://127.0.0.1:{port}/results", time.monotonic() + 20
            while True:
                try:
                    httpx.post(url)
                    break
                except httpx.TransportError:
                    assert time.monotonic() < end, (folder / "log").read_text()
                    time.sleep(0.05)
            yield url
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["flask", "edge function"])
def test_examples_prove_the_signature_and_post_to_slack(name: str, tmp_path: Path) -> None:
    def send(url: str, body: str, secret: str = SECRET) -> str:
        ours = settings(RESULT_URL=url, RESULT_SECRET=secret)
        return post(ours, "evt_1", body, ClaimClock.now()).note

    slack = Stranger()
    with Server(slack.app()) as server, example(name, tmp_path, f"{server.url}/hook") as url:
        assert send(url, EVENT) == "HTTP 204"
        assert send(url, EVENT, f"{OTHER} {SECRET}") == "HTTP 204"  # while the secret changes
        assert send(url, json.dumps({"type": "test", "data": {}})) == "HTTP 204"
        assert [body["text"][:7] for _, _, body in slack.sent] == ["Job 42:", "Job 42:"]
        assert send(url, EVENT, OTHER) == "HTTP 401"
        assert httpx.post(url, content=EVENT).status_code == 401
        assert len(slack.sent) == 2
        slack.status = 500
        assert send(url, EVENT) in ("HTTP 500", "HTTP 503")  # so the event comes again


def test_the_crm_has_one_contact_for_each_user(monkeypatch: pytest.MonkeyPatch) -> None:
    crm = Stranger()
    with Server(crm.app()) as server:
        monkeypatch.setenv("CRM_URL", server.url)
        monkeypatch.setenv("CRM_TOKEN", "pat-1")
        example: dict[str, Any] = {}
        exec(code_blocks(GUIDE, "python")[1], example)
        event = json.loads(EVENT)
        example["upsert"](event)
        for users in (["a", "b"], []):
            example["upsert"]({"type": "number.opted_out", "data": {"user_ids": users}})
    path, proof, body = crm.sent[0]
    assert (path, proof) == ("/crm/v3/objects/contacts/batch/upsert", "Bearer pat-1")
    (contact,) = body["inputs"]
    assert (contact["id"], contact["idProperty"]) == (event["data"]["user_id"], "user_id")
    assert contact["properties"]["call_team_size"] == "2_to_10"
    assert [contact["id"] for contact in crm.sent[1][2]["inputs"]] == ["a", "b"]
    assert len(crm.sent) == 2
