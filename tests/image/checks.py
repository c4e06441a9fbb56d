"""What is true of the image. `make image-check` builds it and runs these; by its name this file is no part of `make test`."""

from __future__ import annotations

import os
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import httpx
import pytest

from tests.e2e.conftest import World, fresh_world
from tests.image.build import ROOT, Image, size
from tests.image.container import Container, running
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.serve import free_port

STARTS = 5
START_SECONDS = 60.0
STOP_SECONDS = 60.0  # a machine at work on other things; what it takes is printed, and Cloud Run leaves it 10
MEGABYTE = 1_000_000
OURS = ("function", "shared")

Start = Callable[..., AbstractContextManager[Container]]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """All but the function and the sweeps: the image is the function, at the port that Vault's URL names."""
    with Sandbox(function=False, scheduler=False, port=free_port(), environ={}) as sandbox:
        sandbox.function_log.touch()  # what `World` shows of a failure; ours say it themselves
        yield sandbox


@pytest.fixture
def world(sandbox: Sandbox) -> Iterator[World]:
    with fresh_world(sandbox) as world:
        yield world


@pytest.fixture
def start(image: Image, sandbox: Sandbox) -> Start:
    """Starts the image with the sandbox's settings: its own command, unless another is given."""

    def start(*command: str, **changed: str) -> AbstractContextManager[Container]:
        port = sandbox.ready.function_url.rpartition(":")[2]
        environ = {**image.environ, **sandbox.settings, "PORT": port, "HOST": "127.0.0.1", **changed}
        user, folder = str(image.config["User"]), str(image.config["WorkingDir"])
        return running(image.root, command or image.command, environ, user=user, folder=folder)

    return start


def await_health(world: World, container: Container) -> None:
    until = time.monotonic() + START_SECONDS
    while container.process.poll() is None and time.monotonic() < until:
        try:
            assert httpx.get(f"{world.sandbox.ready.function_url}/health", timeout=2).json() == {"status": "ok"}
        except httpx.TransportError:
            time.sleep(0.01)
        else:
            return
    pytest.fail(f"it does not answer:\n{container.output}")


def test_nothing_but_function_and_shared_is_ours_inside(image: Image) -> None:
    app = image.root / "app"
    assert sorted(path.name for path in app.iterdir()) == sorted(OURS)
    inside = {path.relative_to(app) for path in app.rglob("*") if path.is_file()}
    assert {path.suffix for path in inside} == {".py", ".pyc", ".toml"}
    forbidden = {"tests", "supabase", "migrations", "monitoring", "docs", ".git", ".env"}
    assert not [path for path in inside if forbidden & {*path.parts}]
    modules = [path.relative_to(ROOT) for name in OURS for path in (ROOT / name).rglob("*.py")]
    assert {path for path in inside if path.suffix == ".py"} == {
        path for path in modules if "supabase" not in path.parts
    }
    # Elsewhere there is nothing of the checkout.
    assert {path.name for path in image.root.iterdir()} == {path.name for path in image.base_root.iterdir()} | {"app"}
    assert [path.name for path in (image.root / "opt").iterdir()] == ["venv"]
    assert not list((image.root / "opt").rglob("requirements.txt"))


def test_its_user_reads_everything_and_writes_nothing(start: Start, image: Image) -> None:
    with start(
        "find", "/app", "/opt/venv", "-not", "-type", "l", "(", "-not", "-readable", "-or", "-writable", ")"
    ) as found:
        assert found.wait(60) == 0
        assert found.output == ""
    with start("sh", "-c", "id -u; id -g; id -G; touch /app/x /opt/venv/x /x; touch /tmp/x && echo /tmp only") as tried:
        tried.wait(10)
        assert tried.output.split()[:3] == ["10001", "10001", "10001"]
        assert tried.output.count("Read-only file system") + tried.output.count("Permission denied") == 3
        assert tried.output.endswith("/tmp only\n")


def test_python_3_13_of_the_image_compiles_nothing(start: Start) -> None:
    with start("python", "-v", "-c", "import sys, function.main, function.sweep; print(sys.version)") as verbose:
        assert verbose.wait(60) == 0
        # Valid bytecode is told by the name of its file, what had to be compiled by the source's.
        loaded = re.findall(r"# code object from '?(/[^'\n]+?)'?\n", verbose.output)
        assert re.search(r"^3\.13\.", verbose.output, re.MULTILINE)
    of_the_image = [path for path in loaded if path.startswith(("/app/", "/opt/venv/"))]
    assert len(of_the_image) > 200
    assert [path for path in of_the_image if not path.endswith(".pyc")] == []


@pytest.mark.timeout(STARTS * (START_SECONDS + STOP_SECONDS))  # its own limits, on a busy machine
def test_image_starts_as_it_stands_without_errors(world: World, image: Image, start: Start, figures: list[str]) -> None:
    took: list[float] = []
    stops: list[float] = []
    for _ in range(STARTS):
        began = time.monotonic()
        with start() as container:
            await_health(world, container)
            took.append(time.monotonic() - began)
            assert "error" not in container.output.lower()
            told = time.monotonic()
            container.terminate()
            assert container.wait(STOP_SECONDS) == 0
            stops.append(time.monotonic() - told)
    with start() as container:
        await_health(world, container)
        memory = container.memory_bytes()
    figures.append(
        f"cold start: {statistics.median(took):.1f} s from the start of `{' '.join(image.command)}` to GET /health"
        f" (median of {STARTS}: {', '.join(f'{seconds:.1f}' for seconds in sorted(took))}); from SIGTERM to its end"
        f" {statistics.median(stops):.1f} s; memory: {memory / MEGABYTE:.0f} MB (PSS, all its processes)"
    )


def test_signed_webhook_makes_the_phone_ring(world: World, start: Start, figures: list[str]) -> None:
    """The trigger signs the webhook, pg_net's stand-in delivers it, the image calls, Twilio's stand-in plays the call."""
    number = world.number()
    with start() as container:
        await_health(world, container)
        refused = world.post("/", json={"type": "INSERT", "table": "outbound_call_jobs", "record": {"id": 1}})
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
        job = world.insert_job(number)
        world.until_status(job, "completed")
        assert len(world.calls(number)) == 1
        figures.append(f"memory after a call: {container.memory_bytes() / MEGABYTE:.0f} MB")


def test_request_under_way_ends_before_sigterm_does(world: World, start: Start) -> None:
    number = world.number()
    world.behave(create="ok", latency_ms=1500, to=number)
    answers: list[httpx.Response] = []
    with start() as container:
        await_health(world, container)
        # No webhook of the trigger's own: it is due later.
        (row,) = world.rows(
            "insert into public.outbound_call_jobs (user_id, phone_number, due_at)"
            " values (gen_random_uuid(), %s, now() + interval '1 hour') returning id", number,
        )  # fmt: skip
        world.rows("update public.outbound_call_jobs set due_at = now() where id = %s returning id", row["id"])
        body = {"type": "INSERT", "table": "outbound_call_jobs", "record": {"id": row["id"]}}
        asking = threading.Thread(target=lambda: answers.append(world.webhook(body)))
        asking.start()
        world.until(lambda: world.attempts(row["id"]))
        assert answers == []
        container.terminate()
        assert container.wait(STOP_SECONDS) == 0
        asking.join(STOP_SECONDS)
    assert [(answer.status_code, answer.json()["did"]) for answer in answers] == [(200, "called")]
    assert len(world.calls(number)) == 1


def test_wrong_settings_end_the_start_and_are_named(start: Start) -> None:
    with start(TWILIO_ACCOUNT_SID="nonsense", CALL_MAX_ATTEMPTS="-1") as container:
        assert container.wait(START_SECONDS) != 0
        named = [word in container.output for word in ("TWILIO_ACCOUNT_SID", "CALL_MAX_ATTEMPTS", "Traceback")]
        assert named == [True, True, False]


def test_cron_job_of_the_image_sweeps_once(world: World, start: Start) -> None:
    number = world.number()
    world.insert_job(number)  # its webhook meets nobody
    with start("python", "-m", "function.sweep", DISPATCH_SECRET="") as container:
        assert container.wait(60) == 0, container.output
        assert '"called": ' in container.output
    assert len(world.calls(number)) == 1


def test_worker_of_the_image_sweeps_until_stopped(world: World, start: Start) -> None:
    with start("python", "-m", "function.sweep", "--every", "1", DISPATCH_SECRET="") as container:
        for _ in range(2):
            number = world.number()
            world.insert_job(number)
            world.until(lambda number=number: world.calls(number))  # type: ignore[misc]
        container.terminate()
        assert container.wait(STOP_SECONDS) == 0


def test_packages_and_code_of_the_image_are_small(image: Image, figures: list[str]) -> None:
    packages, own = size(image.root / "opt" / "venv"), size(image.root / "app")
    figures.append(
        f"image size: {image.size / MEGABYTE:.0f} MB, of which base {image.base_size / MEGABYTE:.0f} MB (Debian's own, in place"
        f" of python:3.13-slim-trixie), packages {packages / MEGABYTE:.0f} MB, function/ and shared/ {own / MEGABYTE:.1f} MB"
    )
    assert packages + own < 250 * MEGABYTE


if os.environ.get("PYTEST_VERSION") is None:
    raise SystemExit("make image-check runs these")
