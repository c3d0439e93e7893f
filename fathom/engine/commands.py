"""The engine's verbs on the command line: `fathom serve` and `fathom chat`. Loads no torch, and no web server."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps")]
Dtype = Annotated[str, typer.Option(help="auto, float32 or bfloat16")]


class _WithSettings(TyperCommand):
    """A command whose help ends with the settings that it takes as name=value."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from fathom.core.config import table

        self.help = f"{self.callback.__doc__}\n\n\b\nSettings, as name=value:\n{table(_settings(self.name))}"
        super().format_help(ctx, formatter)


def _settings(verb: str | None) -> Any:
    """The class whose fields follow as name=value."""
    from fathom.core.chat import Sampling
    from fathom.engine.settings import EngineSettings

    return EngineSettings if verb == "serve" else Sampling


def _words(ctx: typer.Context) -> list[str]:
    """The settings among the command line's words; UsageError where one is an option's name written wrongly."""
    from fathom.core.errors import UsageError

    options = [name for parameter in ctx.command.params for name in parameter.opts if name.startswith("--")]
    for word in ctx.args:
        name = word.partition("=")[0]
        if not word.startswith("--") or name[2:].replace("-", "_") in _settings(ctx.info_name).model_fields:
            continue
        if near := difflib.get_close_matches(name, options, 1):
            raise UsageError(f"{name}: no such option; did you mean {near[0]}? The others are in `fathom "
                             f"{ctx.info_name} --help`, and settings are written name=value")
    return list(ctx.args)


def add(app: typer.Typer) -> None:
    """Adds both commands."""
    for verb in (serve, chat):
        about = (verb.__doc__ or "").partition("\n")[0]
        app.command(verb.__name__, cls=_WithSettings, context_settings=EXTRA, short_help=about)(verb)


def serve(
    ctx: typer.Context,
    model: Annotated[Path, typer.Argument(help="a model directory, a .gguf file, or a packaged model's name")],
    host: Annotated[str, typer.Option(help="the address to listen at; 0.0.0.0: all of this machine's")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="the model's name in requests (default: its directory's)")] = None,
    api_key: Annotated[str | None, typer.Option(help="what clients must show (default: FATHOM_API_KEY)")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="a web page's origin that may ask; * for all")] = None,
    drain_seconds: Annotated[float, typer.Option(help="for what runs when SIGTERM comes", min=0)] = 30.0,
    waiting: Annotated[int, typer.Option(help="completions that may wait; more get 429", min=1)] = 1024,
    updates: Annotated[Path | None, typer.Option(help="take new weights from directories below this one, as `fathom "
                                                 "grpo endpoint.url=…` sends them to DIR/served")] = None,
    device: Device = "auto", dtype: Dtype = "auto",
) -> None:
    """Serve a model over HTTP: OpenAI's interface at /v1, a chat page at /. Engine settings follow as cache_gb=2."""
    from fathom.core.config import build, parse_overrides
    from fathom.engine.server import serve as served
    from fathom.engine.settings import EngineSettings

    settings = build(EngineSettings, {"prefill_tokens": 1024, **parse_overrides(_words(ctx))}, "command line")
    served(model, settings, name=name, host=host, port=port, api_key=api_key, allow_origin=allow_origin or (),
           drain_seconds=drain_seconds, device=device, dtype=dtype, waiting=waiting, updates=updates, say=typer.echo)


def chat(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="a model directory, a .gguf file, or an OpenAI-compatible server's URL")],
    system: Annotated[str, typer.Option(help="the system prompt")] = "",
    name: Annotated[str | None, typer.Option("--model", help="which one, where a server has several")] = None,
    key_env: Annotated[str | None, typer.Option(help="environment variable that holds the server's key")] = None,
    device: Device = "auto", dtype: Dtype = "auto",
) -> None:
    """Talk with a model in the terminal, or ask it one question through a pipe: `fathom chat DIR temperature=0.6`."""
    from fathom.engine.chat import chat as talk

    talk(model, _words(ctx), system=system, name=name, key_env=key_env, device=device, dtype=dtype)
