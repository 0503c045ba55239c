"""The command `loraplex`: its groups, each loaded only when it is asked for, so that `--help` is quick."""

from __future__ import annotations

import importlib

import click

from loraplex import __version__

COMMANDS = {
    "serve": ("loraplex.platform.cli.serve:serve", "Run the server."),
    "chat": ("loraplex.platform.cli.chat:chat", "Talk to a model or an adapter of a running server."),
    "adapter": ("loraplex.platform.cli.adapter:adapter", "Push, list and delete adapters over the API."),
    "batch": ("loraplex.platform.cli.batch:batch", "Have requests in a file answered, in a file."),
    "alias": ("loraplex.platform.cli.alias:alias", "Move, split and roll back what a name stands for."),
    "usage": ("loraplex.platform.cli.usage:usage", "Show what was used, by whom, and what it cost."),
    "top": ("loraplex.platform.cli.top:top", "Watch the engine in the terminal."),
    "tenant": ("loraplex.platform.cli.tenants:tenant", "Create, list and suspend tenants."),
    "key": ("loraplex.platform.cli.tenants:key", "Create, list and revoke API keys."),
    "account": ("loraplex.platform.cli.accounts:account", "Create, list and disable accounts of the admin pages."),
    "audit": ("loraplex.platform.cli.audit:audit", "Verify and export the audit log."),
    "db": ("loraplex.platform.cli.database:db", "Create or upgrade the database."),
}


class LazyGroup(click.Group):
    """Knows names and one-line helps without importing the commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="loraplex")
def main() -> None:
    """Serve many tenants' LoRA adapters from one shared base model, through the OpenAI API."""
