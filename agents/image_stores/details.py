"""From a StoreSpec and its opened secrets to a store's own Settings, or a refusal that names the detail at fault.

It owns the one place where clear secrets meet a schema. It refuses to know any provider; no value of a detail ever
enters an error text (pydantic's messages are used, its inputs are not), which is what keeps secrets out of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from schema.failure import Refused
from schema.image import StoreSpec

EVERYWHERE = "maxbytespersecond"
"""A detail of every provider: the limit that `agents.throttle` keeps, of which no store needs to know."""
S = TypeVar("S", bound=BaseModel)


def read_details(model: type[S], spec: StoreSpec, secrets: Mapping[str, str]) -> S:
    """The store's settings: its details, with clear values in place of the vault's references.

    Names are taken in any case, as CloudStack does. Raises Refused naming the first detail at fault.
    """
    values = {name.lower(): value for name, value in spec.details.items()}
    values.pop(EVERYWHERE, None)
    values.update({name.lower(): value for name, value in secrets.items()})
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        known = ", ".join(sorted(model.model_fields)) or "none"
        cause, remedy = {
            "missing": ("missing", f"{spec.provider} cannot be reached without it"),
            "extra_forbidden": (f"the provider {spec.provider} has no such setting", f"it takes {known}"),
        }.get(first["type"], (str(first["msg"]), ""))
        raise Refused(cause, field=f"details.{name}" if name else "details", remedy=remedy) from None
