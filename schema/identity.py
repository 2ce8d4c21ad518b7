"""Identity: domains, accounts, users and projects. The whole conversation, in the order it happens.

A thing belongs to an account (`Owner`), an account to a domain, and domains are a tree with ROOT at its head.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from schema.ids import NAMESPACE, derive
from schema.message import Command, Event


class Role(StrEnum):
    """What an account may do, in the letters of the commands' roles."""

    ADMIN = "A"  # root admin
    RESOURCE = "R"  # resource admin: sees what a domain admin sees
    DOMAIN = "D"  # domain admin
    USER = "U"


class Owner(BaseModel):
    """The account that a thing belongs to. Accounts and domains are not renamed, so their names may stand here."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    account_id: UUID
    account: str
    """The account's name; a project's own, for what belongs to a project."""
    domain_id: UUID
    path: str
    """The domain's place: `/` is ROOT, `/a/b/` is b in a. A domain below another has a path that begins with the other's."""
    project_id: UUID | None = None
    """Set where the account is a project's."""

    @property
    def domain(self) -> str:
        """The domain's name."""
        return self.path.rstrip("/").rpartition("/")[2] or "ROOT"


ROOT_DOMAIN = derive(NAMESPACE, "domain/ROOT")
ROOT_ACCOUNT = derive(NAMESPACE, "account/admin")
ROOT_USER = derive(NAMESPACE, "user/admin")
"""What every installation begins with."""
ROOT_OWNER = Owner(account_id=ROOT_ACCOUNT, account="admin", domain_id=ROOT_DOMAIN, path="/")
"""Owner of what was made before there were accounts, and of what the installation itself makes."""


def domain_path(path: str) -> str:
    """A domain's path as CloudStack shows it: `ROOT/a/b`."""
    return f"ROOT{path}".rstrip("/")


class CreateDomain(Command, type="domain.create"):
    """Make a domain below another one."""

    name: str
    parent_domain_id: UUID = ROOT_DOMAIN

    def key(self, job_id: UUID) -> str:
        """The domain above it."""
        return f"domain-{self.parent_domain_id}"


class CreateAccount(Command, type="account.create"):
    """Make an account with its first user."""

    SECRETS: ClassVar[tuple[str, ...]] = ("password",)

    username: str
    password: str
    """A vault reference: what it names is a salted hash, never the password."""
    email: str
    first_name: str
    last_name: str
    account: str = ""
    """The account's name; the user's when it is left out."""
    account_type: int | None = None
    """0 user, 1 root admin (only in ROOT), 2 domain admin, 3 resource admin; left out: user."""
    domain_id: UUID = ROOT_DOMAIN
    timezone: str = ""

    def key(self, job_id: UUID) -> str:
        """Its domain."""
        return f"domain-{self.domain_id}"


class CreateUser(Command, type="user.create"):
    """Make another user of an account."""

    SECRETS: ClassVar[tuple[str, ...]] = ("password",)

    username: str
    password: str
    """A vault reference: what it names is a salted hash, never the password."""
    email: str
    first_name: str
    last_name: str
    account_id: UUID
    timezone: str = ""

    def key(self, job_id: UUID) -> str:
        """Its account."""
        return f"account-{self.account_id}"


class RegisterUserKeys(Command, type="user.register_keys"):
    """Give a user new keys; the old ones are worth nothing from then on."""

    EVENT = "REGISTER.USER.KEY"

    SECRETS: ClassVar[tuple[str, ...]] = ("secret_key",)

    id: UUID
    api_key: str
    secret_key: str
    """A vault reference."""

    def key(self, job_id: UUID) -> str:
        """The user."""
        return f"user-{self.id}"


class CreateProject(Command, type="project.create"):
    """Make a project: an account of its own that several accounts share."""

    name: str
    display_text: str = ""
    account_id: UUID
    """Whose project it is."""

    def key(self, job_id: UUID) -> str:
        """The account."""
        return f"account-{self.account_id}"


class AddAccountToProject(Command, type="project.add_account"):
    """Let another account use what belongs to a project."""

    EVENT = "PROJECT.ACCOUNT.ADD"

    project_id: UUID
    account_id: UUID

    def key(self, job_id: UUID) -> str:
        """The project."""
        return f"project-{self.project_id}"


class UpdateResourceLimit(Command, type="resource_limit.update"):
    """Say how much of something an account or a project may hold."""

    owner: Owner
    """The account, or the project's."""
    resource: str
    """volume, snapshot, template, primary_storage or secondary_storage"""
    max: int
    """A count, or bytes of storage; -1: no limit."""

    def key(self, job_id: UUID) -> str:
        """The account."""
        return f"account-{self.owner.account_id}"


class ResourceLimitUpdated(Event, type="resource_limit.updated"):
    """An account or a project may hold so much from now on."""

    owner: Owner
    resource: str
    max: int
    """A count, or bytes; -1: no limit."""


class DomainCreated(Event, type="domain.created"):
    """A domain exists."""

    domain_id: UUID
    name: str
    parent_id: UUID | None = None
    """None for ROOT."""
    path: str


class AccountCreated(Event, type="account.created"):
    """An account exists."""

    owner: Owner
    """The account itself, as what belongs to it says."""
    role: Role
    limits: dict[str, int] = {}
    """Resource -> how much of it the account may hold: counts, and bytes of storage. What is not named has no limit."""


class UserCreated(Event, type="user.created"):
    """A user of an account exists."""

    user_id: UUID
    username: str
    owner: Owner
    role: Role
    password: str = ""
    """A vault reference to a salted hash; empty: this user cannot log in by password."""
    email: str = ""
    first_name: str = ""
    last_name: str = ""
    timezone: str = ""


class UserKeysRegistered(Event, type="user.keys_registered"):
    """A user signs with these keys from now on."""

    user_id: UUID
    api_key: str
    secret_key: str
    """A vault reference."""


class ProjectCreated(Event, type="project.created"):
    """A project exists, with the account whose it is among its accounts."""

    project_id: UUID
    name: str
    display_text: str = ""
    owner: Owner
    """Of what will belong to the project."""
    admin: Owner
    """The account that made it."""
    limits: dict[str, int] = {}
    """Resource -> how much of it the project may hold, as of an account."""


class ProjectAccountAdded(Event, type="project.account_added"):
    """An account may use what belongs to the project."""

    project_id: UUID
    account_id: UUID
    account: str
