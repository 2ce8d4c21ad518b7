"""`storebus profile`: the installations that a person works with.

Owns how profiles are added, shown, chosen and removed from a terminal. Refuses to print a secret key: it is asked for where
nobody sees it, or taken from the environment or a file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from api.cli_form import Form, queried

profile_app = typer.Typer(no_args_is_help=True, help="The installations that you work with: URLs and keys, by name.")
Name = Annotated[str, typer.Argument(help="Its name.")]


@profile_app.command("add")
def add(name: Name, url: Annotated[str, typer.Option(help="http(s)://host:port of the API.")],
        api_key: Annotated[str, typer.Option(help="Its secret key is asked for, or STOREBUS_SECRET_KEY; none: loopback.")] = "",
        secret_key_file: Annotated[Path | None, typer.Option(help="A file that holds the secret key.")] = None,
        ca_file: Annotated[Path | None, typer.Option(help="Certificates to trust besides the system's.")] = None) -> None:
    """Add a profile, or replace it. The first one is in use at once."""
    from pydantic import SecretStr

    from api import profiles
    from api.cli_target import settings
    from schema.failure import BadParameter

    found = settings()
    secret = SecretStr("")
    if secret_key_file is not None:
        try:
            secret = SecretStr(secret_key_file.read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise BadParameter(f"{secret_key_file} cannot be read: {error}", field="secret_key_file") from None
    elif found.secret_key is not None and (api_key or found.api_key):
        secret = found.secret_key
    elif api_key:
        typed = typer.prompt("Secret key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
        secret = SecretStr(typed.strip())
    key = api_key or found.api_key
    if bool(key) != bool(secret.get_secret_value()):
        raise BadParameter("missing", field="secret_key" if key else "api_key",
                           remedy="the API key and the secret key come together")
    profiles.add(found.config_dir, name, profiles.Profile(url=url, api_key=key, secret_key=secret,
                                                          ca_file=ca_file and ca_file.absolute()))


@profile_app.command("list")
@queried
def show(form: Form = None) -> None:
    """List them; of keys only whose they are."""
    from api import profiles
    from api.cli_target import settings
    from api.output import Format, Output

    found = profiles.read(settings().config_dir)
    Output(Format(form) if form else None).rows([
        {"name": name, "use": name == found.use, "url": each.url, "api_key": each.api_key, "ca_file": each.ca_file}
        for name, each in sorted(found.profiles.items())], ("name", "use", "url", "api_key", "ca_file"))


@profile_app.command("use")
def use(name: Annotated[str, typer.Argument(help="Its name; '' for none.")]) -> None:
    """Mean this one from now on."""
    from api import profiles
    from api.cli_target import settings

    profiles.use(settings().config_dir, name)


@profile_app.command("remove")
def remove(name: Name) -> None:
    """Forget one, and its keys."""
    from api import profiles
    from api.cli_target import settings

    profiles.remove(settings().config_dir, name)


__all__ = ["profile_app"]
