"""The `orch` command: global options, lazily loaded commands, and the one place where errors become words and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import click

from orchestrator.errors import OrchError

COMMANDS: dict[str, tuple[str, str]] = {
    "plan": ("orchestrator.cli.plan", "Show what a sweep would run: new, cached and changed runs."),
    "submit": ("orchestrator.cli.submit", "Queue a sweep on Slurm, run it here (--local), or prove every cell (--dry-run)."),
    "status": ("orchestrator.cli.status", "Show where all runs stand."),
    "show": ("orchestrator.cli.show", "Explain one run: what it is, its attempts, why it failed, last log lines."),
    "logs": ("orchestrator.cli.logs", "Print a run's log (-f follows it)."),
    "resume": (
        "orchestrator.cli.resume",
        "Continue failed, lost, timed-out, cancelled and stopped runs from their last checkpoint.",
    ),
    "watch": (
        "orchestrator.cli.watch",
        "Resume what is worth a retry, queue what is planned as the queue drains, ship journals.",
    ),
    "cancel": ("orchestrator.cli.cancel", "Cancel a sweep's runs, or single runs."),
    "table": ("orchestrator.cli.table", "Ship what is new to MLflow and print the sweep's table."),
    "sync": ("orchestrator.cli.sync", "Ship journals to MLflow."),
    "gc": ("orchestrator.cli.gc", "Say what takes room and is of no use any more; --apply removes it."),
    "verify-resume": ("orchestrator.cli.verify", "Prove that a killed and resumed run equals an untouched one, bit for bit."),
    "reproduce": ("orchestrator.cli.reproduce", "Run a finished cell once more from its frozen code, and say what differs."),
    "export": ("orchestrator.cli.export", "Pack a table's sources into one archive."),
    "import": ("orchestrator.cli.import_archive", "Rebuild a root from an archive of `orch export`."),
    "doctor": ("orchestrator.cli.doctor", "Look at this cluster and write the site profile that submit reads."),
}
"""command -> (module, one line). The module's function is called `command`; it is imported when the command is used."""


class LazyGroup(click.Group):
    """A group whose commands are imported on use: `orch --help` and `orch status` stay fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of a day's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table above, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="ORCH_ROOT",
    default=Path("runs"),
    show_default=True,
    help="Where runs, snapshots and the store live (shared file system). Also ORCH_ROOT.",
)
@click.pass_context
def cli(ctx: click.Context, root: Path) -> None:
    """Slurm experiment orchestrator for slot-attention research: one YAML file per table of a paper.

    The tracker is MLFLOW_TRACKING_URI, or a SQLite store below the root.
    """
    from orchestrator.workspace import Root

    before = os.umask(Root(root).umask)  # jobs inherit it, through sbatch too
    ctx.call_on_close(lambda: os.umask(before))
    ctx.obj = root


def main() -> None:
    """Entry point: runs a command; every OrchError becomes its words on stderr and its exit code."""
    try:
        cli.main(standalone_mode=False)
    except OrchError as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except BrokenPipeError:  # `orch status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
