"""Providers as they are asked for: which plug-ins agents carry, and which of them backups go to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.access import Principal
from api.listing import Listed, Lists, Special, page_of
from api.registry import ApiCommand
from api.responses import provider_name
from handlers.image_store import STAGES


async def image_providers(lists: Lists) -> dict[str, dict[str, Any]]:
    """Image store plug-ins that agents announced, by lower-case name."""
    found: dict[str, dict[str, Any]] = {}
    for agent in (await lists.table("agent")).values():
        for spec in agent["providers"] or []:
            found.setdefault(spec["name"].lower(), spec)
    return found


async def providers(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """listStorageProviders: a provider that is of two types is in both lists."""
    kind = values["type"]
    found: dict[str, dict[str, Any]] = {}
    if kind == "primary":
        for pool in (await lists.table("primary_store")).values():
            name = provider_name(pool["kind"])
            found.setdefault(name.lower(), {"name": name, "type": "PRIMARY"})
    else:
        for name, spec in (await image_providers(lists)).items():
            if kind == "image" or name in STAGES:
                found[name] = {
                    "name": provider_name(name), "type": "IMAGE" if kind == "image" else kind, "scope": spec.get("scope", ""),
                    "settings": spec.get("settings", {}), "capabilities": spec.get("capabilities", [])}
    return _page(found, values)


async def backup_providers(lists: Lists, command: ApiCommand, values: Mapping[str, Any], principal: Principal) -> Listed:
    """listBackupProviders: the image store plug-ins. `chosen` is that of configureBackupProvider."""
    chosen = {row["provider"] for row in (await lists.table("backup_provider")).values()}
    wanted = (values.get("name") or "").lower()
    found = {name: {
        "name": provider_name(name), "capabilities": spec.get("capabilities", []), "chosen": name in chosen,
        "description": f"Backs up snapshots to {provider_name(name)} image stores, "
                       f"{'zone' if spec.get('scope') == 'ZONE' else 'region'}-wide"}
        for name, spec in (await image_providers(lists)).items() if wanted in ("", name)}
    return _page(found, values)


def _page(found: Mapping[str, dict[str, Any]], values: Mapping[str, Any]) -> Listed:
    page, word = page_of(values), (values.get("keyword") or "").lower()
    every = [item for name, item in sorted(found.items()) if word in name]
    return every[page.offset:page.offset + page.limit], len(every)


LISTS: dict[str, Special] = {"listStorageProviders": providers, "listBackupProviders": backup_providers}
