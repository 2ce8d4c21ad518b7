"""compose.yaml and Dockerfile as far as they can be proved without an engine: names, settings, commands, files."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer.main
import yaml

from api.cli import app
from api.settings import Settings
from tests.architecture.tree import PACKAGES, ROOT
from tests.services.containers import IMAGES

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ROLES = {name: one for name, one in SERVICES.items() if "build" in one}
SECRETS = {"POSTGRES_PASSWORD", "RABBITMQ_PASSWORD", "S3_SECRET", "STOREBUS_AGENT_TOKEN", "STOREBUS_VAULT_KEY"}


def test_every_lasting_service_has_its_health() -> None:
    assert {name for name, one in SERVICES.items() if "healthcheck" not in one} == {"migrate"}


def test_everything_that_is_waited_for_is_there() -> None:
    for name, one in SERVICES.items():
        for other, how in one.get("depends_on", {}).items():
            assert other in SERVICES, f"{name} waits for {other}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other]
        named = {volume.split(":")[0] for volume in one.get("volumes", [])}
        assert named <= set(COMPOSE["volumes"]), f"{name} mounts {named}"


def test_images_are_those_of_the_tests() -> None:
    for service, image in IMAGES.items():
        assert SERVICES[service]["image"] == image


@pytest.mark.parametrize("name", ROLES)
def test_a_role_is_started_as_the_command_line_has_it(name: str) -> None:
    command = typer.main.get_command(app)
    words = [str(word) for word in ROLES[name]["command"]]
    with command.make_context("storebus", words, resilient_parsing=False) as context:
        sub = command.commands[words[0]]  # type: ignore[attr-defined]  # a Group, which typer does not say
        sub.make_context(words[0], words[1:], parent=context)  # raises UsageError for what it does not know
    known = {f"STOREBUS_{field.upper()}" for field in Settings.model_fields}
    assert set(ROLES[name]["environment"]) <= known


def test_agents_know_no_key_of_the_vault_and_no_database() -> None:
    for name in ("agent-storage", "agent-kvm"):
        assert not {"STOREBUS_VAULT_KEY", "STOREBUS_DATABASE_URL"} & set(ROLES[name]["environment"])


def test_no_secret_is_written_down_and_the_example_names_all() -> None:
    text = (ROOT / "compose.yaml").read_text()
    assert {*re.findall(r"\$\{(\w+)", text)} == SECRETS
    assert not re.findall(r"\$\{\w+:-", text), "a secret has no default"
    example = (ROOT / "compose.env.example").read_text()
    assert {*re.findall(r"^(\w+)=$", example, re.MULTILINE)} == SECRETS
    assert ".env" in (ROOT / ".gitignore").read_text().split()


def test_only_loopback_is_published() -> None:
    published = [port for one in SERVICES.values() for port in one.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_image_holds_what_it_copies() -> None:
    copied = [word for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")
              for word in shlex.split(line)[1:-1]]
    assert {*PACKAGES} <= {*copied}
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert {*copied} == allowed
    assert all((ROOT / name).exists() for name in copied)
