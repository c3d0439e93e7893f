"""The command of each system on the command line: settings as key=value, its help from the settings class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from fathom.core.errors import UsageError
from fathom.systems import SYSTEMS, settings_class

Seed = Annotated[int, typer.Option(help="names all randomness of the run", min=0)]
Fresh = Annotated[bool, typer.Option("--fresh", help="move an earlier run aside and start anew")]
Dry = Annotated[bool, typer.Option("--dry-run", help="check the settings, print what it would cost, do nothing")]
Limit = Annotated[float | None, typer.Option(help="stop, resumable, after this many seconds")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no log lines on the terminal; they are in DIR/logs")]
EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}


class _SystemCommand(TyperCommand):
    """The command of a system, whose settings class is loaded and explained when its own --help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from fathom.core.config import table

        cls = settings_class(str(self.name))
        doc = "\n\n".join(" ".join(part.split()) for part in (cls.__doc__ or "").split("\n\n"))
        self.help = f"{doc}\n\n\b\nSettings, as key=value or in a YAML file:\n{table(cls)}"
        super().format_help(ctx, formatter)


def add(app: typer.Typer, name: str) -> None:
    """Adds the command of one system to the command line."""

    def command(
        ctx: typer.Context,
        settings: Annotated[str | None, typer.Argument(help="a YAML file of settings, or the first key=value")] = None,
        dir: Annotated[Path, typer.Option(help="the run directory")] = Path("runs") / name,
        seed: Seed = 0, fresh: Fresh = False, dry_run: Dry = False, time_limit: Limit = None, quiet: Quiet = False,
    ) -> None:
        from fathom.core.config import build, load_yaml, merge, parse_overrides
        from fathom.systems import check_paths, start

        file = settings if settings and "=" not in settings and not settings.startswith("-") else None
        words = [*([settings] if settings and file is None else []), *ctx.args]
        values = merge(load_yaml(file) if file else {}, parse_overrides(words))
        where = file or "command line"
        if dry_run:
            built = build(settings_class(name), values, where)
            print_plan(built)
            try:
                check_paths(built, where)
            except UsageError as error:  # what it begins with may be made later
                typer.echo(f"  missing so far: {error}")
            return
        start(name, values, dir, seed, where, fresh=fresh, time_limit=time_limit, console=not quiet)

    app.command(name, cls=_SystemCommand, context_settings=EXTRA, short_help=SYSTEMS[name].about)(command)


def print_plan(settings: Any) -> None:
    """What running with these settings would cost, a line each."""
    plan = getattr(settings, "plan", None)
    for key, value in (plan() if plan else {}).items():
        typer.echo(f"  {key}: {value:,}" if isinstance(value, int) else f"  {key}: {value}")
