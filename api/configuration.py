"""Configuration: what an installation was told, as listConfigurations shows it.

Owns which settings are shown and under which names: each of `api.settings` under its own, and under CloudStack's the ones that
its clients ask for, and limits that are fixed here. Refuses to know secrets: a setting that is one is not listed, nor what may
hold one.
"""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from api.listing import PAGE
from api.settings import Settings
from handlers.decider import ACCOUNT_LIMITS

GIB = 1 << 30
HIDDEN = frozenset({"url", "key", "token", "secret", "password"})
"""Words in the names of settings that are or may hold secrets, or that only the command line reads."""


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Every setting and limit, by name."""
    found = [_row(f"storebus.{name.replace('_', '.')}", getattr(settings, name), "Storebus", field.description or "")
             for name, field in Settings.model_fields.items() if "Secret" not in str(field.annotation)
             and not isinstance(getattr(settings, name), SecretStr) and not HIDDEN & set(name.split("_"))]
    found += [_row(name, value, category, description) for name, value, category, description in (
        ("default.page.size", PAGE, "Advanced", "Largest page of a list, and what one without paging gives."),
        ("storage.max.volume.size", settings.max_volume_gib, "Storage", "Largest volume, GiB."),
        ("max.template.iso.size", settings.max_image_bytes // GIB, "Storage", "Largest object that a download may be, GiB."),
        ("snapshot.delta.max", settings.snapshot_chain, "Snapshots", "Links of a chain of incremental snapshots."),
        ("integration.api.port", settings.api_port, "Advanced", "Port of the HTTP listener; 0: any free one."),
        ("api.throttling.max", settings.api_limit, "Advanced", "Requests that one user may send in an interval; 0: no limit."),
        ("api.throttling.interval", settings.api_limit_interval, "Advanced", "Seconds of that interval."),
        *(_limit(resource, most) for resource, most in ACCOUNT_LIMITS.items()))]
    return sorted(found, key=lambda row: str(row["name"]))


def facts(settings: Settings) -> dict[str, Any]:
    """What listCapabilities says of the settings."""
    return {"customdiskofferingmaxsize": settings.max_volume_gib, "userpublictemplateenabled": settings.public_templates}


def _limit(resource: str, most: int) -> tuple[str, int, str, str]:
    storage = resource.endswith("_storage")
    return (f"max.account.{resource.replace('_', '.') if storage else resource + 's'}", most // GIB if storage else most,
            "Account Defaults", f"How much {resource.replace('_', ' ')} a new account may hold{', GiB' if storage else ''}.")


def _row(name: str, value: Any, category: str, description: str) -> dict[str, Any]:
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    kind = "Boolean" if isinstance(value, bool) else "Number" if isinstance(value, int | float) else "String"
    return {"name": name, "value": text, "category": category, "description": description, "type": kind, "isdynamic": False}


__all__ = ["facts", "rows"]
