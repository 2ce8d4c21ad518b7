"""Changing what a template says about itself, and who may use it. One append each, at the edge.

Rules kept here: a reset leaves it to its account alone; add and remove name accounts; bytes are never touched, so the format
stays what it is.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from handlers.decider import Context, Flow, Step
from handlers.job import result_of
from handlers.template import TemplateState, known, refuse_public, refuse_unknown_os, stream
from schema.failure import BadParameter, Failure
from schema.message import Command
from schema.template import PermitIso, PermitTemplate, TemplatePermitted, TemplateUpdated, Traits, UpdateIso, UpdateTemplate

ACCOUNTS = 1000
"""Accounts that one template may be shared with."""
OPS = ("", "add", "remove", "reset")


class _Sync:
    """A flow without orders: one append and it is over."""

    subject, placed, cancellable = "template", False, False
    steps: tuple[Step, ...] = ()

    def streams(self, job_id: UUID, command: Any) -> list[str]:
        """The template."""
        return [stream(command.id)]

    def finish(self, context: Context) -> dict[str, Any]:
        """The template."""
        command: Any = context.command
        state: TemplateState = context.state(stream(command.id))
        return result_of(state.kind, state.id)

    def fail(self, context: Context, failure: Failure) -> None:
        """Never reached: there is nothing to wait for."""


class UpdateFlow(_Sync):
    """Other words about it."""

    def start(self, context: Context) -> None:
        """A template that is there, and something to change."""
        command = context.command
        assert isinstance(command, UpdateTemplate)
        state = known(context, command.id, kind="iso" if isinstance(command, UpdateIso) else "template")
        if command.name is not None and not 1 <= len(command.name) <= 255:
            raise BadParameter("must have 1 to 255 characters", field="name")
        if command.format is not None and command.format is not state.format:
            raise BadParameter(f"its bytes are {state.format.upper()}, and stay so", field="format",
                               remedy="register it again with other bytes")
        refuse_unknown_os(command.os_type_id)
        traits = self._traits(command, state.traits)
        same = traits == state.traits and command.name in (None, state.name)
        if same and command.display_text is None and command.os_type_id is None:
            return
        context.emit(stream(state.id), TemplateUpdated(
            template_id=state.id, name=command.name, display_text=command.display_text, os_type_id=command.os_type_id,
            traits=traits))

    @staticmethod
    def _traits(command: UpdateTemplate, before: Traits) -> Traits:
        given: dict[str, Any] = {
            "requires_hvm": command.requires_hvm, "password_enabled": command.password_enabled,
            "ssh_key_enabled": command.ssh_key_enabled, "dynamically_scalable": command.dynamically_scalable,
            "bootable": command.bootable, "sort_key": command.sort_key, "arch": command.arch,
            "template_type": command.template_type, "template_tag": command.template_tag,
            "details": {} if command.clean_up_details else command.details}
        if command.is_routing is not None:
            given["template_type"] = "ROUTING" if command.is_routing else "USER"
        return before.model_copy(update={name: value for name, value in given.items() if value is not None})


class PermitFlow(_Sync):
    """Other people may use it."""

    def start(self, context: Context) -> None:
        """An operation that fits the accounts; what is asked for already is fine."""
        command = context.command
        assert isinstance(command, PermitTemplate)
        state = known(context, command.id, kind="iso" if isinstance(command, PermitIso) else "template")
        self._check(context, command, state)
        accounts = [each for each in dict.fromkeys(command.account_ids) if each != state.owner.account_id]
        added = [each for each in accounts if each not in state.granted] if command.op == "add" else []
        removed = [each for each in state.granted if command.op == "reset" or (command.op == "remove" and each in accounts)]
        granted = [*(each for each in state.granted if each not in removed), *added]
        if len(granted) > ACCOUNTS:
            raise BadParameter(f"a template is shared with at most {ACCOUNTS} accounts", field="accounts",
                               remedy="make it public, or share it with a project")
        reset = command.op == "reset"
        event = TemplatePermitted(
            template_id=state.id, granted=granted, added=added, removed=removed,
            is_public=_new(command.is_public, False if reset else state.public),
            is_featured=_new(command.is_featured, False if reset else state.featured),
            is_extractable=_new(command.is_extractable, state.extractable))
        before = (state.public, state.featured, state.extractable)
        if added or removed or (event.is_public, event.is_featured, event.is_extractable) != before:
            context.emit(stream(state.id), event)

    @staticmethod
    def _check(context: Context, command: PermitTemplate, state: TemplateState) -> None:
        if command.op not in OPS:
            raise BadParameter(f"{command.op[:16]!r} is not one of add, remove, reset", field="op")
        if command.account_ids and not command.op:
            raise BadParameter("missing", field="op", remedy="accounts and projectids go with add, remove or reset")
        if command.op in ("add", "remove") and not command.account_ids:
            raise BadParameter(f"op={command.op} needs accounts or projectids", field="accounts")
        if not state.public:
            refuse_public(context, command.is_public, state.owner)


def _new(asked: bool | None, otherwise: bool) -> bool:
    return otherwise if asked is None else asked


FLOWS: dict[type[Command], Flow] = {
    UpdateTemplate: UpdateFlow(), UpdateIso: UpdateFlow(), PermitTemplate: PermitFlow(), PermitIso: PermitFlow()}
"""Every command of this file, and what it leads to."""
