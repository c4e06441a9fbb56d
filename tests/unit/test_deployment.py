"""cloudbuild.yaml, the guide and the Render Blueprint agree with their schema, with gcloud, the image and the settings."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from function.sweep import _longest_step_s
from shared.settings import Settings, load_settings
from tests.unit.deployment import ROOT, Acted, act, cloudbuild, code_blocks, page, scripts, substitutions
from tests.unit.examples import ENVIRON, settings

DOCKERFILE = (ROOT / "Dockerfile").read_text()
SETTINGS = {field.upper() for field in Settings.model_fields}
SECRETS = {"SUPABASE_SERVICE_KEY", "TWILIO_AUTH_TOKEN", "DISPATCH_SECRET"}
OURS = {
    "_SUPABASE_URL": "https://abcdefghijklmnopqrst.supabase.co", "_TWILIO_ACCOUNT_SID": "AC" + "0" * 32,
    "_TWILIO_PHONE_NUMBER": "+14155550199", "_CALL_ONLY_TO": "+14155550123 +14155550124", "_CALL_COUNTRIES": "US,CA",
    "_MORE_SETTINGS": ";CALL_RING_SECONDS=30;CALL_MAX_ATTEMPTS=2",
}  # fmt: skip
THERE = {
    "gcloud run services list": "call-dispatcher\n",
    "gcloud run services describe": "100\tcall-dispatcher-00007-abc\n\tcall-dispatcher-00008-def\n",
    "gcloud scheduler jobs list": "projects/a-project/locations/europe-west1/jobs/call-dispatcher-sweep\n",
}


def deploy(step: str, folder: Path, answers: dict[str, str] | None = None) -> Acted:
    if step in ("deploy", "smoke-test") and not (folder / "settings.env").exists():
        deploy("try", folder)
    acted = act(scripts()[step], folder, substitutions(**OURS), THERE if answers is None else answers)
    assert acted.code == 0, acted.output
    return acted


def flags(command: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in command if word.startswith("--") and "=" in word)


@dataclass(frozen=True)
class Deployment:
    """Of a whole deployment: the service's settings, and the flags of the commands that deploy and schedule."""

    environ: dict[str, str]
    run: list[str]
    service: dict[str, str]
    sweep: dict[str, str]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    folder = tmp_path_factory.mktemp("deployment")
    run = deploy("deploy", folder).of("gcloud", "run", "deploy")
    sweep = deploy("schedule", folder).of("gcloud", "scheduler", "jobs", "update")
    lines = [line for line in (folder / "settings.env").read_text().splitlines() if line]
    environ = dict(line.split("=", 1) for line in lines)
    assert len(environ) == len(lines)
    return Deployment(environ, run, flags(run), flags(sweep))


def test_cloudbuild_yaml_follows_the_schema_of_cloud_build() -> None:
    command = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", "vendor.cloudbuild"]
    done = subprocess.run([*command, ROOT / "cloudbuild.yaml"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_scripts_are_bash_and_read_substitutions_as_variables() -> None:
    for script in scripts().values():
        assert script.startswith("#!/usr/bin/env bash\nset -euo pipefail\n")
        assert "$$" not in script  # Cloud Build leaves scripts as they are, so this would be the shell's pid
        checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=10)
        assert checked.returncode == 0, checked.stderr
    used = set(re.findall(r"\$\{?(_[A-Z_]+)", (ROOT / "cloudbuild.yaml").read_text()))
    assert used == set(cloudbuild()["substitutions"])


def test_steps_push_nothing_that_is_not_tested() -> None:
    steps = cloudbuild()["steps"]
    assert [step["id"] for step in steps] == [
        "build", "test", "try", "push", "deploy", "smoke-test", "traffic", "schedule",
    ]  # fmt: skip
    assert steps[3]["waitFor"] == ["test", "try"]
    assert not any("waitFor" in step for step in steps[4:])  # without it, a step waits for all before it


def test_deployed_settings_are_valid_and_complete(deployment: Deployment) -> None:
    assert {*ENVIRON} - SECRETS <= {*deployment.environ} <= (SETTINGS - SECRETS) | {"THREADS"}
    loaded = load_settings(environ=deployment.environ | {name: ENVIRON[name] for name in SECRETS})
    assert loaded.call_only_to == ("+14155550123", "+14155550124")
    assert (loaded.call_ring_seconds, loaded.call_max_attempts) == (30, 2)
    assert loaded.api_base_url == "https://call-dispatcher-123456789012.europe-west1.run.app"


def test_defaults_in_cloudbuild_equal_those_of_the_code() -> None:
    """Except CALL_DISPATCHER_LIMIT, which fits the scheduler's minute."""
    values, defaults = substitutions(), settings()
    for name in ("CALL_HOURS", "CALLS_PER_SECOND", "CALLS_PER_DAY", "REQUEST_TIMEOUT_SECONDS"):
        assert getattr(settings(**{name: values[f"_{name}"]}), name.lower()) == getattr(defaults, name.lower())


def test_secrets_are_pinned_and_read_by_the_service_alone(deployment: Deployment, tmp_path: Path) -> None:
    pinned = "SUPABASE_SERVICE_KEY=supabase-service-key:1,TWILIO_AUTH_TOKEN=twilio-auth-token:1,DISPATCH_SECRET=dispatch-secret:1"
    assert deployment.service["--set-secrets"] == pinned
    (tmp_path / "settings.env").write_text("")
    told = act(scripts()["deploy"], tmp_path, substitutions(**OURS, _RESULT_SECRET_VERSION="3"), THERE)
    secrets = flags(told.of("gcloud", "run", "deploy"))["--set-secrets"]
    assert secrets == f"{pinned},RESULT_SECRET=result-secret:3"
    assert "availableSecrets" not in cloudbuild()


def test_concurrency_equals_the_number_of_threads_of_the_image(deployment: Deployment) -> None:
    (threads,) = re.findall(r"THREADS=(\d+)", DOCKERFILE)
    told = (substitutions()["_CONCURRENCY"], deployment.service["--concurrency"], deployment.environ["THREADS"])
    assert {*told} == {threads}


def test_sweep_ends_before_its_request_and_request_before_lease(deployment: Deployment) -> None:
    values = substitutions()
    told = (deployment.service["--timeout"], deployment.sweep["--attempt-deadline"])
    request, deadline = (float(text.removesuffix("s")) for text in told)
    deployed = settings(REQUEST_TIMEOUT_SECONDS=values["_REQUEST_TIMEOUT_SECONDS"])
    assert deployed.sweep_timeout_seconds < request < deployed.call_lease_seconds
    assert request <= deadline <= 60  # a minute, the scheduler's pace
    assert values["_SCHEDULE"] == "* * * * *"


def test_sweep_and_instances_have_room_for_a_batch() -> None:
    """CALL_DISPATCHER_LIMIT fits into the time in which a sweep claims, at CALLS_PER_SECOND."""
    values = substitutions()
    deployed = settings(**{name: values[f"_{name}"] for name in ("CALLS_PER_SECOND", "REQUEST_TIMEOUT_SECONDS")})
    claims_for_s = deployed.sweep_timeout_seconds - _longest_step_s(deployed)
    assert claims_for_s == 23
    assert int(values["_MAX_INSTANCES"]) * int(values["_CONCURRENCY"]) >= 200  # one whole pg_net.batch_size
    assert 0.8 * claims_for_s * deployed.calls_per_second < int(values["_CALL_DISPATCHER_LIMIT"]) <= claims_for_s


def test_scheduler_sends_the_token_that_the_function_expects(deployment: Deployment) -> None:
    expected = {
        "--oidc-service-account-email": deployment.environ["SWEEP_SERVICE_ACCOUNT"],
        "--oidc-token-audience": deployment.environ["API_BASE_URL"],
        "--uri": f"{deployment.environ['API_BASE_URL']}/sweep",
        "--http-method": "post",
        "--message-body": "{}",  # a POST without a Content-Length is refused with 413
        "--max-retry-attempts": "0",
    }
    assert {name: deployment.sweep.get(name) for name in expected} == expected


def test_release_gets_no_traffic_unless_it_is_the_first(deployment: Deployment, tmp_path: Path) -> None:
    assert {"--no-traffic", "--no-invoker-iam-check"} <= {*deployment.run}
    # Cloud Run refuses --no-traffic for a service that does not exist.
    assert "--no-traffic" not in deploy("deploy", tmp_path, {}).of("gcloud", "run", "deploy")
    assert deploy("schedule", tmp_path, {}).of("gcloud", "scheduler", "jobs", "create")


def test_smoke_test_passes_one_health_and_three_refusals(tmp_path: Path) -> None:
    candidate = "https://candidate---call-dispatcher-123456789012.europe-west1.run.app"
    options = (
        "--silent --show-error --retry 5 --retry-all-errors --max-time 30 --output /dev/null --write-out %{http_code}"
    )
    answers = {f"curl {options} {candidate}/{path}": code for path, code in (("health", "200"), ("", "401"))}
    assert len(deploy("smoke-test", tmp_path, answers).commands) == 4
    codes = {  # the last one authenticates nobody
        code: act(scripts()["smoke-test"], tmp_path, substitutions(**OURS), {"curl": code}).code
        for code in ("503", "401", "000", "200")
    }
    assert 0 not in codes.values()
    (tmp_path / "settings.env").write_text("VOICE_PATH=/twilio/voice\n")
    asked = [command[-3] for command in deploy("smoke-test", tmp_path, answers).commands]
    assert asked[-1].endswith(".run.app/twilio/voice")


def test_traffic_goes_to_the_candidate_and_keeps_previous(tmp_path: Path) -> None:
    traffic = flags(deploy("traffic", tmp_path).of("gcloud", "run", "services", "update-traffic"))
    tags = (traffic["--to-tags"], traffic["--update-tags"])
    assert tags == ("candidate=100", "previous=call-dispatcher-00007-abc")


def test_unreadable_list_of_services_stops_the_deployment(tmp_path: Path) -> None:
    deploy("try", tmp_path)
    failing = scripts()["deploy"].replace("#!/usr/bin/env bash\n", "gcloud() { return 1; }\n", 1)
    acted = act(failing, tmp_path, substitutions(**OURS))
    assert (acted.code != 0, acted.commands) == (True, [])


@pytest.fixture(scope="module")
def guide_commands(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The command lines of every shell block of cloud-run.md and secrets.md."""
    blocks = [block for name in ("cloud-run.md", "secrets.md") for block in code_blocks(page(name), "sh")]
    answers = {"gcloud projects describe": "123456789012\n", "gcloud secrets versions access": "whsec_new whsec_old"}
    acted = act("\n".join(["set -u", *blocks]), tmp_path_factory.mktemp("readme"), {}, answers)
    assert acted.code == 0, acted.output
    assert "unbound variable" not in acted.output
    return acted.commands


@pytest.fixture(scope="module")
def gcloud(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment without credentials and network, in which gcloud reads the command line and stops."""
    if shutil.which("gcloud") is None:
        pytest.skip("gcloud is not installed: nothing else knows its flags")
    yes = ("CORE_DISABLE_PROMPTS", "CORE_DISABLE_USAGE_REPORTING", "COMPONENT_MANAGER_DISABLE_UPDATE_CHECK")
    return {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path_factory.mktemp("home")),
        "CLOUDSDK_CONFIG": str(tmp_path_factory.mktemp("gcloud")), "CLOUDSDK_CORE_PROJECT": "a-project",
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false", **{f"CLOUDSDK_{name}": "true" for name in yes},
        "HTTPS_PROXY": "http://127.0.0.1:9",  # a request that it makes after all reaches nothing
    }  # fmt: skip


def quoted(word: str) -> str:
    """Quoted for the shell, value by value: the linter takes a quoted word for the value of the flag before it."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{equals}{shlex.quote(value) if value else ''}"


def refusals(commands: list[list[str]], environ: dict[str, str], folder: Path) -> dict[str, str]:
    """The command lines that gcloud refuses, with its reasons. One process reads all of them and runs none."""
    lines = dict.fromkeys(" ".join(map(quoted, words)) for words in commands if words[0] == "gcloud")
    asked = [{"command_string": line} for line in lines]
    (folder / "commands.json").write_text(json.dumps(asked))
    done = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", "--commands-file=commands.json"],
        cwd=folder, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert len(answers) == len(asked)
    return {answer["command_string"]: answer["error_message"] for answer in answers if not answer["success"]}


@pytest.mark.timeout(300)  # gcloud reads its own tables of flags: seconds, or a minute on a busy machine
def test_gcloud_knows_each_flag_of_build_and_guide(
    gcloud: dict[str, str], tmp_path: Path, guide_commands: list[list[str]]
) -> None:
    steps = [(step, there) for step in ("deploy", "traffic", "schedule") for there in (THERE, dict[str, str]())]
    build = [command for step, there in steps for command in deploy(step, tmp_path, there).commands]
    assert (len(build) >= 8, len(guide_commands) > 40) == (True, True)
    wrong = [
        "gcloud run deploy x --image=y --region=z --nonsense",
        "gcloud scheduler jobs create http x --schedule='* * * * *' --uri=https://x --http-method=no",
        "gcloud run no-such-command",
    ]
    refused = refusals([*build, *guide_commands, *map(shlex.split, wrong)], gcloud, tmp_path)
    assert refused.keys() == {" ".join(map(quoted, shlex.split(line))) for line in wrong}, refused


def test_guide_creates_and_removes_each_resource_of_cloudbuild(guide_commands: list[list[str]]) -> None:
    lines = [" ".join(command) for command in guide_commands]
    values = substitutions()
    accounts = [values[name].partition("@")[0] for name in ("_RUNTIME_ACCOUNT", "_SWEEP_ACCOUNT")]
    named = [("iam service-accounts", name) for name in (*accounts, "call-dispatcher-build")]
    named += [("secrets", name) for name in ("supabase-service-key", "twilio-auth-token", "dispatch-secret")]
    named += [("artifacts repositories", values["_REPOSITORY"]), ("iam roles", "callDispatcherDoor")]
    pairs = {f"gcloud {kind} create {name} ": f"gcloud {kind} delete {name}" for kind, name in named} | {
        "gcloud storage buckets create ": "gcloud storage rm ",
        "gcloud builds submit ": f"gcloud run services delete {values['_SERVICE']} ",
    }

    def first(start: str) -> int:
        return next((number for number, line in enumerate(lines) if line.startswith(start)), -1)

    assert {create: remove for create, remove in pairs.items() if not -1 < first(create) < first(remove)} == {}
    assert first(f"gcloud scheduler jobs delete {values['_SERVICE']}-sweep") > 0


def test_guide_rolls_back_as_cloudbuild_says(guide_commands: list[list[str]]) -> None:
    back = "update-traffic call-dispatcher --region=europe-west1 --to-tags=previous=100"
    assert back in (ROOT / "cloudbuild.yaml").read_text()
    assert any(back in " ".join(command) for command in guide_commands)


@pytest.fixture(scope="module")
def render() -> dict[str, Any]:
    (block,) = code_blocks(page("render.md"), "yaml")
    blueprint: dict[str, Any] = YAML(typ="safe").load(block)
    return blueprint


def test_render_runs_the_image_in_its_three_ways(render: dict[str, Any]) -> None:
    services = {service["type"]: service for service in render["services"]}
    worker = services["worker"]["dockerCommand"]
    assert {service["runtime"] for service in services.values()} == {"docker"}
    assert {kind: service.get("dockerCommand") for kind, service in services.items()} == {
        "web": None, "worker": worker, "cron": "python -m function.sweep",
    }  # fmt: skip
    assert re.fullmatch(r"python -m function\.sweep --every [1-9]\d*", worker)
    assert services["web"]["healthCheckPath"] == "/health"
    assert services["cron"]["schedule"] == substitutions()["_SCHEDULE"]


def test_render_gets_each_required_setting_and_no_unknown_one(render: dict[str, Any]) -> None:
    (group,) = render["envVarGroups"]
    names = [variable["key"] for variable in group["envVars"]]
    assert {*ENVIRON} <= {*names} <= SETTINGS
    assert len(names) == len({*names})
    told = {variable["key"]: variable["value"] for variable in group["envVars"] if "value" in variable}
    assert settings(**told).call_dispatcher_limit == int(substitutions()["_CALL_DISPATCHER_LIMIT"])
    assert not {*told} & SECRETS
    assert [service["envVars"] for service in render["services"]] == [[{"fromGroup": group["name"]}]] * 3
