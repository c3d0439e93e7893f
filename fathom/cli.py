"""The command line: verbs and paths. Each verb lives in the room that it reads; nothing here loads torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fathom import __version__
from fathom.core.errors import FathomError, UsageError
from fathom.engine import commands as engine
from fathom.systems import SYSTEMS, command
from fathom.systems.command import EXTRA, Dry, Fresh, Quiet

# Nothing here imports pydantic or a settings class before a command needs it: `fathom --help` is to answer at once.
app = typer.Typer(
    name="fathom", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Trains language models to reason, on problems that a program checks, and shows that it did.\n\n"
    "Start with `fathom demo`. `fathom run RECIPE` runs a sequence of systems; each system also runs alone.",
)


@app.callback(invoke_without_command=True)
def _top(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="print the version")] = False
) -> None:
    if version or ctx.invoked_subcommand is None:
        typer.echo(__version__ if version else ctx.get_help())
        raise typer.Exit


@app.command("run", context_settings=EXTRA)
def run(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="a YAML file, or one that ships, like tiny/demo")],
    dir: Annotated[Path | None, typer.Option(help="the run directory (default: runs/NAME)")] = None,
    seed: Annotated[int | None, typer.Option(help="in place of the recipe's seed", min=0)] = None,
    fresh: Fresh = False, dry_run: Dry = False, quiet: Quiet = False,
) -> None:
    """Run a recipe: `fathom run tiny/demo reasoned.group=4`. The same command again continues where it was left."""
    from fathom import recipes

    loaded = recipes.load(recipe, ctx.args, dir, seed)
    if dry_run:
        for stage in loaded.stages:
            typer.echo(f"{stage.name}: {stage.system} in {loaded.directory / stage.name}")
            command.print_plan(stage.settings)
        return
    typer.echo(f"report: {recipes.run(loaded, fresh, not quiet)}")


@app.command("demo")
def demo(
    dir: Annotated[Path, typer.Option(help="the run directory")] = Path("runs/demo"),
    seed: Annotated[int | None, typer.Option(help="in place of the recipe's seed", min=0)] = None,
    fresh: Fresh = False, dry_run: Dry = False,
) -> None:
    """Train, teach and improve a small model in minutes on a CPU, kill it on the way, and see that nothing was lost."""
    from fathom.recipes import demo as room

    room.demo(dir, seed, fresh, dry_run)


@app.command("audit", context_settings=EXTRA)
def audit(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="as for `fathom run`, with the same name=value words")],
    labels: Annotated[Path | None, typer.Option(help="JSON lines with answer, text and right: does the judge agree?")]
    = None,
    seconds: Annotated[float, typer.Option(help="what is not done by then is a failure, by name")] = 60.0,
) -> None:
    """Try out a recipe's data, templates, judges and rewards before hours are spent on them; exit code 3 on a fault.

    Looks at masks, stop tokens, BOS, cut answers, test problems in training; asks judges and rewards about known right,
    known wrong and cheating completions.
    """
    from fathom.audit import audit as audited

    audited(recipe, ctx.args, labels, seconds)


@app.command("report")
def report(
    directory: Annotated[Path, typer.Argument(help="a run directory")],
    format: Annotated[str | None, typer.Option(help="an evaluation as lm-eval or lighteval writes it, instead")] = None,
) -> None:
    """Write one offline HTML page about a run: curves, experts, completions with verdicts, scores with intervals."""
    from fathom.report import write_report
    from fathom.tasks.export import export

    if format is not None:
        typer.echo(export(directory, format))
        return

    typer.echo(write_report(directory))


@app.command("compare")
def compare(
    a: Annotated[Path, typer.Argument(help="an evaluation, or a run that holds one")],
    b: Annotated[Path, typer.Argument(help="another one")],
    flips: Annotated[int, typer.Option(help="how many problems that changed are listed, each way", min=0)] = 5,
) -> None:
    """Compare two evaluations problem by problem, with the problems that changed; says when it is "not significant"."""
    from fathom.report.compare import compare as compared
    from fathom.report.compare import render

    typer.echo(render(compared(a, b), flips))


@app.command("show")
def show(
    directory: Annotated[Path, typer.Argument(help="a run or stage directory")],
    n: Annotated[int, typer.Option(help="how many", min=1)] = 5,
    rejects: Annotated[bool, typer.Option("--rejects", help="what was rejected, and why")] = False,
    outcome: Annotated[str | None, typer.Option(help="only right, wrong, unread or failed")] = None,
    step: Annotated[int | None, typer.Option(help="only this step's completions")] = None,
) -> None:
    """Print records, completions with their verdicts, or rejects with their reasons."""
    from fathom.report.show import show as shown

    shown(directory, n=n, rejects=rejects, outcome=outcome, step=step)


@app.command("inspect")
def inspect(
    what: Annotated[str | None, typer.Argument(help="a preset, a model directory or a .gguf file; alone: the presets")]
    = None,
    as_json: Annotated[bool, typer.Option("--json", help="the same as JSON")] = False,
    context: Annotated[int | None, typer.Option(help="tokens per sequence, for memory and arithmetic", min=1)] = None,
    batch: Annotated[int, typer.Option(help="sequences in the cache", min=1)] = 1,
) -> None:
    """Print what a model is and costs: parameters, cache, memory, arithmetic, routing, and its template's loss mask."""
    from fathom.model.inspect import show as shown

    shown(what, context, batch, as_json)


@app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(help="a model directory, a .gguf file, or a packaged model's name")],
    target: Annotated[Path, typer.Argument(help="the directory to write; it must not exist")],
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16, float32 or fp8; else as stored")] = None,
    experts: Annotated[str, typer.Option(help="split or fused")] = "split",
    names: Annotated[str, typer.Option(help="hf, or deepseek for its inference demo")] = "hf",
    tokenizer: Annotated[Path | None, typer.Option(help="a directory that has one, where SOURCE has none")] = None,
    shard_gb: Annotated[float, typer.Option(help="most of one file, in 10⁹ bytes", min=0.001)] = 5.0,
    license: Annotated[str, typer.Option(help="what the model card says")] = "unknown",
) -> None:
    """Rewrite a model in another form, a tensor at a time; nothing is kept unless both forms give the same bits."""
    from fathom.model import weights

    weights.convert(source, target, dtype, experts, names, tokenizer, int(shard_gb * 1e9), license, typer.echo)
    typer.echo(target)


@app.command("push")
def push(
    directory: Annotated[Path, typer.Argument(help="a model directory that Fathom has finished")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub")],
    private: Annotated[bool, typer.Option("--private", help="only you see a repository that is made now")] = False,
    revision: Annotated[str | None, typer.Option(help="a branch, made if need be")] = None,
) -> None:
    """Upload a finished model directory to the Hugging Face hub."""
    from fathom.model import weights

    typer.echo(weights.push(directory, repo, private, revision))


@app.command("doctor")
def doctor() -> None:
    """Print what this machine offers: versions, memory, devices, the sandbox's level, extras that are missing."""
    from fathom.judge.sandbox import reached_level
    from fathom.model.doctor import doctor as examined

    level, why = reached_level()
    for line in examined((level.name, why)):
        typer.echo(line)


# What typer raises for a word that it does not know: the UsageError of click, or of the copy of click that it carries.
_Refused: Any = typer.BadParameter.__mro__[1]

for _name in SYSTEMS:
    command.add(app, _name)
engine.add(app)


def main() -> None:
    """Runs the command line; an error meant for the user goes to stderr, without traceback, with its own exit code."""
    try:
        code = app(standalone_mode=False, prog_name="fathom")  # an interrupted command's 130 comes back as a value
        if isinstance(code, int) and code:
            sys.exit(code)
    except FathomError as error:
        typer.echo(f"fathom: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except _Refused as error:
        command = error.ctx.command_path if error.ctx else "fathom"
        said = error.format_message()
        typer.echo(f"fathom: {said}{'' if said[-1:] in '.?' else '.'} See `{command} --help`", err=True)
        sys.exit(UsageError.exit_code)
