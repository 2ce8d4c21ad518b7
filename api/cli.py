"""`storebus`: the command line. Its commands, their options and their help; what they do is in the modules beside it.

Owns the surface and the exit status (0 it worked, 1 it did not, 2 wrong usage, 130 interrupted). Nothing heavy is
imported before a command runs, so that help is instant.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from api.cli_form import Form, Format, queried
from api.cli_profile import profile_app

if TYPE_CHECKING:
    from api.settings import Settings

app = typer.Typer(name="storebus", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]},
                  help="The storage lifecycle of a cloud as events: publish commands, subscribe to events, replay history.")
held_app = typer.Typer(invoke_without_command=True, help="Messages that failed and wait, with those behind them.")
dlq_app = typer.Typer(invoke_without_command=True, help="Dead letters: messages that nobody can handle.")
app.add_typer(profile_app, name="profile")
app.add_typer(held_app, name="held")
app.add_typer(dlq_app, name="dlq")


class Shell(StrEnum):
    """What `completion` knows."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


class Role(StrEnum):
    """What `serve` runs."""

    API = "api"
    HANDLERS = "handlers"
    LOG = "log"
    AGENT = "agent"


DataDir = Annotated[Path | None, typer.Option(help="Where the installation lives.")]
DatabaseUrl = Annotated[str | None, typer.Option(help="Postgres; unset: the embedded one.")]
AmqpUrl = Annotated[str | None, typer.Option(help="RabbitMQ; unset: no broker.")]
Words = Annotated[list[str] | None, typer.Argument(
    metavar="[KEY=VALUE]...", help="Parameters; KEY=@FILE reads the value from a file.")]
Text = str | None
Number = int | None
ApiUrl = Annotated[Text, typer.Option(help="Where the API is; unset: the profile's, or the installation's.")]
ProfileName = Annotated[Text, typer.Option(help="A profile, as `storebus profile list` shows them.")]


def _settings(**options: Any) -> Settings:
    from api.cli_target import settings

    return settings(**options)


def _output(form: Format | None) -> Any:
    from api.output import Format as Chosen
    from api.output import Output

    return Output(Chosen(form) if form else None)


def _form(form: Format | None) -> Any:
    from api.output import Format as Chosen

    return Chosen(form) if form else None


def _run(work: Coroutine[Any, Any, int]) -> NoReturn:
    """Run to the end and leave with its status; an interrupt or SIGTERM cancels it, so that it closes what it opened."""

    async def interruptible() -> int:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            return 130

    raise typer.Exit(asyncio.run(interruptible()))


# --- running ---------------------------------------------------------------------------------------------------------


def _start(settings: Settings) -> None:
    from api.logs import set_up

    set_up(settings.log_level, settings.log_format)


def _serve(work: Coroutine[Any, Any, None]) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


@app.command()
def up(data_dir: DataDir = None,
       api_port: Annotated[Number, typer.Option(help="Port of the HTTP listener; 0: any free.")] = None,
       amqp_url: AmqpUrl = None, database_url: DatabaseUrl = None) -> None:
    """Run everything on this machine until it is interrupted."""
    from api.bootstrap import run_up

    settings = _settings(data_dir=data_dir, api_port=api_port, amqp_url=amqp_url, database_url=database_url)
    _start(settings)
    output = _output(None)

    def ready(said: dict[str, str]) -> None:
        output.say(f"storebus is up: {said['api']}/client/api, data in {said['data_dir']}, process {said['pid']}")
        output.say("in a second terminal: storebus doctor; storebus call listStorageProviders type=image; "
                   "storebus subscribe")

    _serve(run_up(settings, ready))


@app.command()
def serve(role: Role, data_dir: DataDir = None, amqp_url: AmqpUrl = None, database_url: DatabaseUrl = None,
          api_port: Annotated[Number, typer.Option(help="Of the role api.")] = None,
          api_host: Annotated[Text, typer.Option(help="Of the role api.")] = None,
          agent_role: Annotated[list[str] | None, typer.Option(
              "--role", help="Of an agent: storage, kvm; both unless said.")] = None) -> None:
    """Run one role as a process of its own, on RabbitMQ and Postgres."""
    settings = _settings(data_dir=data_dir, api_port=api_port, api_host=api_host, amqp_url=amqp_url,
                         database_url=database_url)
    _start(settings)
    output = _output(None)

    def ready(said: dict[str, str]) -> None:
        output.say(", ".join(f"{name} {value}" for name, value in said.items()) + ": ready")

    if role == "agent":
        from api.agent_role import KINDS, run_agent

        _serve(run_agent(settings, ready, kinds=tuple(agent_role or KINDS)))
    else:
        from api.bootstrap import run_role

        _serve(run_role(settings, str(role), ready))


@app.command()
@queried
def migrate(data_dir: DataDir = None, database_url: DatabaseUrl = None,
            new_epoch: Annotated[bool, typer.Option(help="After a restore: readers that are ahead stop.")] = False,
            form: Form = None) -> None:
    """Bring the database to this version's shape."""
    from api.cli_target import dsn
    from bus.migrate import migrate as bring

    settings, output = _settings(data_dir=data_dir, database_url=database_url), _output(form)

    async def work() -> int:
        applied = await bring(await asyncio.to_thread(dsn, settings), new_epoch=new_epoch)
        output.rows([{"migration": name, "outcome": "applied"} for name in applied])
        return 0

    _run(work())


# --- asking and telling ----------------------------------------------------------------------------------------------


@app.command()
@queried
def call(command: Annotated[str, typer.Argument(help="CloudStack's name of it; listApis shows them.")],
         words: Words = None,
         wait: Annotated[bool, typer.Option("--wait", help="Wait for the job's end, with its progress.")] = False,
         timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 86400.0,
         api_url: ApiUrl = None, profile: ProfileName = None,
         data_dir: DataDir = None, form: Form = None) -> None:
    """Call any API command by its CloudStack name. The exit status is the result."""
    from api import cli_call

    _run(cli_call.call(command, words or [], form=_form(form), wait=wait, timeout_s=timeout, url=api_url, profile=profile,
                       data_dir=data_dir))


@app.command()
@queried
def plan(command: Annotated[str, typer.Argument(help="CloudStack's name of it.")], words: Words = None,
         api_url: ApiUrl = None, profile: ProfileName = None,
         data_dir: DataDir = None, form: Form = None) -> None:
    """Explain how a command's bytes would move, why so, and what was refused. Nothing is done."""
    from api import cli_plan

    _run(cli_plan.plan(command, words or [], form=_form(form), url=api_url, profile=profile, data_dir=data_dir))


@app.command()
@queried
def scrub(store: Annotated[str, typer.Argument(help="The image store's id or name.")],
          share: Annotated[str, typer.Option(help="How much of it: 5% or 0.05.")] = "5%",
          wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; exits 1 when something is bad.")] = False,
          timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 86400.0,
          api_url: ApiUrl = None, profile: ProfileName = None,
          data_dir: DataDir = None, form: Form = None) -> None:
    """Read a share of an image store again and compare it with what was written; what is damaged is quarantined."""
    from api import cli_scrub

    _run(cli_scrub.scrub(store, share, form=_form(form), wait=wait, timeout_s=timeout, url=api_url, profile=profile,
                         data_dir=data_dir))


@app.command()
@queried
def publish(command: Annotated[str, typer.Argument(help="CloudStack's name, or the message's, e.g. volume.create.")],
            words: Words = None,
            id: Annotated[Text, typer.Option(help="The job's id: sending again with it is the same job.")] = None,  # noqa: A002
            data_dir: DataDir = None, database_url: DatabaseUrl = None, amqp_url: AmqpUrl = None,
            form: Form = None) -> None:
    """Put a command onto the bus and print its job's id."""
    from api import cli_bus

    settings = _settings(data_dir=data_dir, database_url=database_url, amqp_url=amqp_url)
    _run(cli_bus.publish(settings, command, words or [], id=id, form=_form(form)))


From = Annotated[str, typer.Option("--from", help="beginning, now, a position, or a time.")]


@app.command()
@queried
def subscribe(pattern: Annotated[str, typer.Argument(help="E.g. snapshot.*, volume.#.")] = "#",
              start: From = "beginning",
              group: Annotated[Text, typer.Option(help="A name: goes on where it stopped.")] = None,
              limit: Annotated[Number, typer.Option(help="Stop after so many events.")] = None,
              orders: Annotated[bool, typer.Option("--orders", help="Also what agents are ordered to do.")] = False,
              data_dir: DataDir = None, database_url: DatabaseUrl = None, form: Form = None) -> None:
    """Print events as they happen. With --group nothing is missed between two runs."""
    from api import cli_bus

    settings = _settings(data_dir=data_dir, database_url=database_url)
    _run(cli_bus.subscribe(settings, pattern, start=start, group=group, limit=limit, orders=orders, form=_form(form)))


@app.command()
@queried
def replay(start: From = "beginning",
           end: Annotated[Text, typer.Option("--to", help="now, a position, or a time.")] = None,
           types: Annotated[list[str] | None, typer.Option("--type", help="E.g. snapshot.*; may be repeated.")] = None,
           streams: Annotated[list[str] | None, typer.Option("--stream", help="E.g. volume-<id>; may be repeated.")] = None,
           correlation: Annotated[Text, typer.Option(help="A job's id.")] = None,
           to_queue: Annotated[Text, typer.Option(help="Publish to this queue.")] = None,
           rebuild: Annotated[Text, typer.Option(help="A projection, or all.")] = None,
           rate: Annotated[float | None, typer.Option(help="Events a second at most.")] = None,
           dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
           data_dir: DataDir = None, database_url: DatabaseUrl = None, amqp_url: AmqpUrl = None,
           form: Form = None) -> None:
    """A part of history again: printed, sent to a queue, or folded into the read tables."""
    from api import cli_bus

    settings = _settings(data_dir=data_dir, database_url=database_url, amqp_url=amqp_url)
    _run(cli_bus.replay(settings, types or [], start=start, end=end, streams=streams or [], correlation=correlation,
                        to_queue=to_queue, rebuild=rebuild, rate=rate, dry_run=dry_run, form=_form(form)))


@app.command()
@queried
def jobs(job: Annotated[Text, typer.Argument(help="One job: everything it led to.")] = None,
         status: Annotated[Text, typer.Option(help="submitted, running, undoing, completed, failed, cancelled.")] = None,
         limit: Annotated[int, typer.Option(help="The newest so many.")] = 20,
         data_dir: DataDir = None, database_url: DatabaseUrl = None, form: Form = None) -> None:
    """The newest jobs, or one job's story."""
    from api import cli_bus

    settings = _settings(data_dir=data_dir, database_url=database_url)
    _run(cli_bus.jobs(settings, job, status=status, limit=limit, form=_form(form)))


@app.command()
@queried
def chain(snapshot: Annotated[str, typer.Argument(help="Its id.")],
          json_form: Annotated[bool, typer.Option("--json", help="As -o json.")] = False,
          data_dir: DataDir = None, database_url: DatabaseUrl = None, form: Form = None) -> None:
    """Draw the chain of incremental snapshots that one belongs to."""
    from api import cli_chain

    settings = _settings(data_dir=data_dir, database_url=database_url)
    _run(cli_chain.chain(settings, snapshot, form=_form(Format.JSON if json_form else form)))


# --- looking after it ------------------------------------------------------------------------------------------------

Key = Annotated[Text, typer.Option(help="All of this key.")]
One = Annotated[Number, typer.Argument(help="Its number.")]
Every = Annotated[bool, typer.Option("--all", help="All of them.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def _messages(group: typer.Typer, *, dead: bool) -> None:
    """The same four commands for held messages and for dead letters."""

    def run(action: str, data_dir: Path | None, database_url: str | None, form: Format | None, **more: Any) -> NoReturn:
        from api import cli_held

        settings = _settings(data_dir=data_dir, database_url=database_url)
        _run(cli_held.run(settings, action, _output(form), dead=dead, **more))

    @group.callback(invoke_without_command=True)
    @queried
    def nothing(context: typer.Context, data_dir: DataDir = None, database_url: DatabaseUrl = None,
                form: Form = None) -> None:
        if context.invoked_subcommand is None:
            run("list", data_dir, database_url, form)

    @group.command("list")
    @queried
    def _list(key: Key = None, data_dir: DataDir = None, database_url: DatabaseUrl = None, form: Form = None) -> None:
        """List them, in the order they came."""
        run("list", data_dir, database_url, form, key=key)

    @group.command("show")
    @queried
    def _show(number: One, data_dir: DataDir = None, database_url: DatabaseUrl = None, form: Form = None) -> None:
        """One of them, with headers and body."""
        run("show", data_dir, database_url, form, id=number)

    @group.command("redrive")
    @queried
    def _redrive(number: One = None, key: Key = None, every: Every = False, dry_run: DryRun = False,
                 data_dir: DataDir = None, database_url: DatabaseUrl = None, form: Form = None) -> None:
        """Handle them once more, in order."""
        run("redrive", data_dir, database_url, form, id=number, key=key, every=every, dry_run=dry_run)

    @group.command("discard")
    @queried
    def _discard(number: One = None, key: Key = None, every: Every = False, dry_run: DryRun = False,
                 data_dir: DataDir = None, database_url: DatabaseUrl = None, form: Form = None) -> None:
        """Forget them. Their commands never happen."""
        run("discard", data_dir, database_url, form, id=number, key=key, every=every, dry_run=dry_run)


_messages(held_app, dead=False)
_messages(dlq_app, dead=True)


@app.command()
@queried
def verify(data_dir: DataDir = None, database_url: DatabaseUrl = None, form: Form = None) -> None:
    """Prove that the history is whole and that everything equals its fold; name what is not."""
    from api.cli_verify import verify as prove

    _run(prove(_settings(data_dir=data_dir, database_url=database_url), _output(form)))


@app.command()
@queried
def doctor(data_dir: DataDir = None, database_url: DatabaseUrl = None, amqp_url: AmqpUrl = None,
           api_url: ApiUrl = None, profile: ProfileName = None, form: Form = None) -> None:
    """Check what this machine and this installation need, or an API alone; a remedy for each fault."""
    from api import doctor as checks
    from api.cli_target import target

    settings = _settings(data_dir=data_dir, database_url=database_url, amqp_url=amqp_url)
    if api_url or profile or settings.profile:
        _run(checks.doctor_by_api(target(settings, url=api_url, profile=profile), _output(form)))
    _run(checks.doctor(settings, _output(form)))


@app.command()
@queried
def config(data_dir: DataDir = None,
           api_port: Annotated[Number, typer.Option(help="As given to up.")] = None,
           amqp_url: AmqpUrl = None, database_url: DatabaseUrl = None, form: Form = None) -> None:
    """Every setting with its value and where it comes from; secrets masked."""
    from api.cli_target import origins

    _output(form).rows(origins({"data_dir": data_dir, "api_port": api_port, "amqp_url": amqp_url,
                                "database_url": database_url}), ("name", "value", "origin", "description"))


@app.command()
@queried
def asyncapi(form: Form = None) -> None:
    """The AsyncAPI document: every message, for foreign AMQP clients."""
    from api.asyncapi import document, text

    if form is Format.YAML:
        _output(form).object(document())
    else:
        sys.stdout.write(text())


@app.command()
def completion(shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.")]) -> None:
    """Print what a shell needs to complete words of storebus: eval "$(storebus completion bash)"."""
    from api.completion_scripts import SCRIPTS

    sys.stdout.write(SCRIPTS[shell])


@app.command(hidden=True)
def complete(shell: Shell, line: str, several: bool = True) -> None:
    """The words that a line may go on with; the shells' scripts ask."""
    from api.completion import answer

    sys.stdout.write(answer(str(shell), line, several=several))


@app.command(hidden=True)
def demo(image: str = "", keep: bool = False, before_checks: str = "") -> None:
    """The whole way of a real disk image; `make demo` runs it."""
    from api.demo import main as run

    raise typer.Exit(run(image, keep, before_checks))


def main() -> None:
    """The console script."""
    try:
        app()
    except BrokenPipeError:
        # Whoever read us has enough; nothing more may be written, not even when Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from schema.failure import Failed

        if not isinstance(error, Failed):
            raise
        from api.output import plain

        sys.stderr.write(f"error {error.failure.code}: {plain(error.failure.text)}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
