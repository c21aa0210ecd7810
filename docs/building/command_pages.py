"""A page for every command of `workbench`, from click's own description of it.

Needs   workbench.app.cli.commands.
Yields  page name -> text; a table of all commands.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

from building.prose import inline
from building.tables import markdown_table
from workbench.app.cli import commands


def every_command() -> Iterator[tuple[str, click.Command]]:
    """ "plot", "checkpoints", "checkpoints scan", ... and the command of each."""
    yield from _below("", commands)


def _below(path: str, group: click.Group) -> Iterator[tuple[str, click.Command]]:
    for name, command in sorted(group.commands.items()):
        full = f"{path} {name}".strip()
        yield full, command
        if isinstance(command, click.Group):
            yield from _below(full, command)


def page_name(full: str) -> str:
    return full.replace(" ", "-")


def pages() -> dict[str, str]:
    """Of every command, what its page holds."""
    return {page_name(full): _page(full, command) for full, command in every_command()}


def table() -> str:
    """All commands in Markdown, a line each."""
    rows = [
        [
            f"[`workbench {full}`](../generated/commands/{page_name(full)}.rst)",
            command.get_short_help_str(200),
        ]
        for full, command in every_command()
    ]
    return markdown_table(["command", "what it does"], rows)


def _page(full: str, command: click.Command) -> str:
    title = f"workbench {full}"
    context = click.Context(command, info_name=title)
    usage = " ".join(command.collect_usage_pieces(context))
    out = [f".. _command-{page_name(full)}:", "", title, "=" * len(title), ""]
    out += [".. code-block:: text", "", f"    {title} {usage}", "", *_help(command)]
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if options:
        out += ["Options", "-" * 7, ""]
        for option in options:
            out += _option(option, context)
    if isinstance(command, click.Group):
        out += ["Commands", "-" * 8, ""]
        for name, inner in sorted(command.commands.items()):
            target = page_name(f"{full} {name}")
            out.append(f"- :ref:`command-{target}`: {inline(inner.get_short_help_str(200))}")
    return "\n".join([*out, "", "Exit codes: :doc:`/reference/command-line`.", ""])


def _help(command: click.Command) -> list[str]:
    """The help text; what click was told not to wrap (\\b) stays as it is."""
    out: list[str] = []
    for part in (command.help or "").replace("\f", "").split("\n\n"):
        if part.lstrip().startswith("\b"):
            kept = part.lstrip().removeprefix("\b").strip("\n").splitlines()
            out += [".. code-block:: text", "", *(f"    {line}" for line in kept), ""]
        else:
            out += [inline(" ".join(part.split())), ""]
    return out


def _option(option: click.Option, context: click.Context) -> list[str]:
    names = ", ".join([*option.opts, *option.secondary_opts])
    kind = "" if option.is_flag or option.count else f" {option.make_metavar(ctx=context)}"
    told = (option.get_help_record(context) or ("", ""))[1]
    more = " May be repeated." if option.multiple and "repeat" not in told else ""
    return [f"``{names}{kind}``", f"    {inline(told.strip() or 'No more is said.')}{more}", ""]
