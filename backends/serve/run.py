"""The server process says where it listens, writes its log, and ends in order."""

import ipaddress
import logging
import sys
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from backends.serve.app import create_app
from backends.serve.keys import Keys
from backends.serve.limits import Limits
from backends.serve.service import Trained
from bbt.backend import Backend
from bbt.errors import ConfigError


def serve(backend: Backend, host: str, port: int, keys: Keys, limits: Limits, trained: Trained | None = None) -> None:
    """Answer requests until SIGINT or SIGTERM; what has begun is finished first. `trained` is a run on the backend, to
    be asked too.

    Raises:
        ConfigError: it would be reachable from other machines without a key.
    """
    check_reach(host, keys)
    log_to_stderr()
    uvicorn.Server(server_config(create_app(backend, keys, limits, trained), host, port)).run()


def server_config(app: FastAPI, host: str, port: int, **more: Any) -> uvicorn.Config:
    """The settings with which uvicorn runs the application; `more` are uvicorn's own. The gate writes the log, and
    heads of answers are short, as befits answers of a few hundred bytes."""
    settings: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "date_header": False}
    return uvicorn.Config(app, host=host, port=port, **settings, **more)


def check_reach(host: str, keys: Keys) -> None:
    """Refuse to listen where others could ask without a key.

    Raises:
        ConfigError: other machines can reach this host's address, and there is no key.
    """
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local and not len(keys):
        raise ConfigError(
            f"other machines can reach {host}: give --keys FILE with a key for each client, or listen on 127.0.0.1."
        )


def log_to_stderr() -> None:
    """Write the log to standard error, one JSON object a line, uvicorn's lines too."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler = logging.StreamHandler(sys.stderr)
    renderers: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=renderers))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
