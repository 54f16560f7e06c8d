"""The command `bbt serve` offers a model's forward pass over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from bbt.cli.common import Option, backend_options
from bbt.errors import ConfigError


def serve(
    model: Annotated[
        str, typer.Argument(help="Bundled name, folder or hub name (bbt ls models); or a run, to classify with.")
    ] = "minilm-mlm",
    host: Annotated[str, typer.Option(help="Address to listen on; one that others reach needs --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
    keys: Annotated[Path | None, typer.Option(help="YAML file of API keys and what each may use.")] = None,
    limit: Annotated[
        list[str] | None, typer.Option("--limit", metavar="NAME=NUMBER", help="Another limit, e.g. rows=4096.")
    ] = None,
    option: Option = None,
) -> None:
    """Answer label scores, likelihoods and texts of soft prompts over HTTP, to `backend: http`; the model's weights
    stay here. Of a run folder, also answer POST /v1/classify: texts in, labels and probabilities out.

    Example: bbt serve minilm-mlm --port 8000 --option precision=fp32
    """
    try:
        from backends.serve.keys import Keys
        from backends.serve.limits import Limits
        from backends.serve.run import check_reach
        from backends.serve.run import serve as run
    except ImportError as error:
        raise ConfigError(f"bbt serve needs {error.name}: pip install 'bbt-prompt[serve]'.") from error
    from backends import load_backend
    from bbt.config import parse_override, validated
    from bbt.predictor import Predictor

    limits = validated(Limits, dict(parse_override("--limit", pair, "rows=4096") for pair in limit or ()), "limits")
    holders = Keys.read(keys) if keys else Keys()
    check_reach(host, holders)  # before the model is loaded
    options, path = backend_options(option), Path(model)
    if path.suffix == ".safetensors" or any((path / name).is_file() for name in ("config.yaml", "prompt.safetensors")):
        predictor = Predictor(path, options)
        run(predictor.backend, host, port, holders, limits, predictor)
    else:
        run(load_backend("local", model=model, **options), host, port, holders, limits)
