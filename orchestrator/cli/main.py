"""The entry point `orch`: commands loaded when called, and every error as a clear line and an exit code."""

import errno
import gc
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

import click

from orchestrator.cli.terminal import Invocation, complain, note, warn
from orchestrator.errors import OrchError
from orchestrator.loading.rare_collections import OBJECTS

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Start here": {
        "demo": ("demo", "Train the quickstart sweep and watch it."),
        "init": ("setup", "Write orch.toml and make the database."),
        "doctor": ("doctor", "Check that everything orch needs is in order."),
    },
    "Queue": {
        "enqueue": ("enqueue", "Put the jobs of a sweep file into the queue."),
        "cancel": ("job_control", "Cancel jobs: waiting ones at once, running ones at their next heartbeat."),
        "pause": ("job_control", "Pause jobs; running ones write a checkpoint first."),
        "resume": ("job_control", "Let paused jobs go on."),
        "retry": ("job_control", "Queue failed or cancelled jobs again."),
        "extend": ("job_control", "Give jobs a larger budget: they go on from their last checkpoint."),
        "reprioritise": ("job_control", "Let jobs run before others, or after them."),
        "hide": ("removal", "Take ended jobs out of lists, laws and reports."),
        "delete": ("removal", "Delete jobs for good; orch gc removes their files."),
        "queue": ("queue_commands", "Show figures of the whole queue; pause and resume it."),
    },
    "Look": {
        "status": ("status", "Show jobs and how far they are."),
        "show": ("show", "Show everything about one job."),
        "explain": ("explain", "Say why a job is, or is not, running."),
        "logs": ("logs", "Print what a job's process wrote."),
        "wait": ("wait", "Wait until jobs have ended; the exit code says how."),
        "top": ("top", "Watch workers and running jobs until q is pressed."),
        "metrics": ("metrics", "Print figures for Prometheus."),
        "ui": ("services", "Open MLflow's pages on this machine."),
    },
    "Laws": {
        "fit": ("fit_command", "Fit scaling laws to the jobs of sweeps."),
        "plot": ("report_commands", "Draw what sweeps came to."),
        "report": ("report_commands", "Write one page about sweeps: findings, figures, fits, jobs."),
        "forecast": ("forecast_command", "Say what sizes that were never trained would come to."),
        "plan": ("plan_command", "Propose the jobs to run next, as a sweep file."),
    },
    "SAEs": {
        "evaluate": ("evaluate", "Queue jobs that measure what SAEs are good for."),
        "results": ("results_command", "Show what was measured of SAEs."),
        "lens": ("lens", "Train tuned lenses, list and show them."),
        "sae": ("sae", "List trained SAEs, bring others in, check them, give them to other libraries."),
    },
    "Work": {
        "worker": ("workers", "Train and evaluate queued jobs until stopped."),
        "tracking": ("services", "Rebuild what MLflow shows."),
    },
    "Place": {
        "gc": ("gc", "Remove what nobody needs any more."),
        "config": ("setup", "Show settings and the config schema; check sweep files."),
        "db": ("database_commands", "Create, upgrade and check the database schema; back it up."),
        "completion": ("setup", "Print the completion script of a shell."),
    },
}
ALIASES = {"ls": ["status"], "ps": ["status", "--state", "running"]}

EXIT_CODES = """Exit codes: 0 ok; 1 error; 2 usage or config; 3 not found; 4 not allowed in this state; 5 database,
broker or schema out of reach; 6 time-out of wait; 7 a waited job failed; 8 a waited job was cancelled;
130 interrupted."""


class LazyGroup(click.Group):
    """A group that knows its commands' names and one-line helps, and loads a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help page."""
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command."""
        found = next((section[cmd_name] for section in SECTIONS.values() if cmd_name in section), None)
        if found is None:
            return None
        module = importlib.import_module(f"orchestrator.cli.commands.{found[0]}")
        command: click.Command = getattr(module, cmd_name)
        accept_globals(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, an alias of it, or the name that was likely meant."""
        args = [*ALIASES.get(args[0], args[:1]), *args[1:]]
        if args[0] not in self.list_commands(ctx) and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise click.NoSuchCommand(args[0], possibilities=[*self.list_commands(ctx), *ALIASES], ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections without loading a command."""
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in section.items()])


def _remember(ctx: click.Context, param: click.Parameter, value: bool | str | None) -> None:
    invocation = ctx.ensure_object(Invocation)
    if param.name == "color" and value is not None:
        ctx.color = {"always": True, "never": False}.get(str(value))
    elif param.name in {"debug", "no_input"} and value:
        setattr(invocation, param.name, True)


def _globals(*, hidden: bool) -> list[click.Parameter]:
    """Return the global options: shown and read from the environment before the command, hidden behind it."""

    def option(name: str, help_text: str, kind: click.Choice[str] | None = None) -> click.Option:
        variable = None if hidden else "ORCH_" + name.removeprefix("--").replace("-", "_").upper()
        return click.Option(
            [name], help=help_text, type=kind, is_flag=kind is None, hidden=hidden, envvar=variable,
            show_envvar=not hidden, expose_value=False, callback=_remember, is_eager=True,
        )  # fmt: skip

    return [
        option("--color", "When to use colours.", click.Choice(["auto", "always", "never"])),
        option("--no-input", "Never ask; what would need an answer fails."),
        option("--debug", "Show the traceback of an error."),
    ]


def accept_globals(command: click.Command) -> None:
    """Let a command and those within it take the global options too, so that their place does not matter."""
    if any(param.name == "debug" for param in command.params):
        return
    command.params.extend(_globals(hidden=True))
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            accept_globals(inner)


@click.group(
    cls=LazyGroup,
    params=_globals(hidden=False),
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(package_name="orch", message="orch %(version)s")
def cli() -> None:
    """Queue, train and track sparse autoencoders.

    New here? `orch demo` trains a first sweep, on a small language model that ships with orch, and shows the results.
    """
    _warn_of_unknown_variables()


def _warn_of_unknown_variables() -> None:
    """Say which ORCH_ variables of the environment set nothing, and which one was probably meant."""
    from difflib import get_close_matches

    from orchestrator.settings import VARIABLES

    own = [str(param.envvar) for param in cli.params if isinstance(param, click.Option) and param.envvar]
    known = [name.removeprefix("ORCH_") for name in (*VARIABLES, *own)]
    for name in sorted(os.environ):
        short = name.removeprefix("ORCH_")
        if short not in (name, *known) and not short.startswith("TEST_"):
            near = get_close_matches(short, known, n=1)
            meant = f"; did you mean ORCH_{near[0]}?" if near else ""
            warn(f"the environment variable {name} sets nothing{meant}", "Every setting: orch config show")


def main(args: Sequence[str] | None = None) -> None:
    """Run `orch` and exit."""
    gc.set_threshold(OBJECTS)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    code = run(args)
    gc.freeze()  # nor does the end of the process: looking through all modules then takes a sixth of a short command
    sys.exit(code)


def run(args: Sequence[str] | None = None) -> int:
    """Run `orch` and return its exit code; every error becomes a message."""
    invocation = Invocation()
    try:
        code = cli.main(args, prog_name="orch", standalone_mode=False, obj=invocation)
        sys.stdout.flush()
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        return _interrupted(error)
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        note(said.getvalue().rstrip())
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the one place where anything becomes a message
        if invocation.debug:
            note(traceback.format_exc())
        return _explain(error)
    return code if isinstance(code, int) else 0


_PATH_ERRORS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EROFS)
_PATH_HINT = "Name a file or folder that is there and that you may write to."


def _interrupted(error: BaseException) -> int:
    if KeyboardInterrupt in {type(error), type(error.__cause__), type(error.__context__)}:
        return 130  # a message would tell nothing new to the person who pressed Ctrl-C
    complain("Nothing was changed.")
    return 1


def _explain(error: Exception) -> int:
    if isinstance(error, OrchError):
        complain(f"Error: {error.message}", error.hint)
        return error.exit_code
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        complain(f"Error: {where}{error.strerror}", _PATH_HINT if error.errno in _PATH_ERRORS else "")
        return 1
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    complain(
        f"Error: this should not have happened: {said}",
        "Please report it, with what this prints: the same, with --debug",
    )
    return 1
