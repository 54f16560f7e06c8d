"""The routes, version 1. Arrays are bodies as `backends.wire` lays them out, all else is JSON."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from backends.serve.device import BusyError, Device, ModelError
from backends.serve.gate import Gate, refusal
from backends.serve.keys import Account, Keys, QuotaError
from backends.serve.limits import Limits
from backends.serve.metrics import CONTENT_TYPE, Metrics
from backends.serve.schemas import (
    Answers,
    ContextSet,
    Fault,
    Id,
    Ids,
    Model,
    PairSet,
    Registered,
    RegisteredPairs,
    RegisteredRows,
    RowSet,
    Space,
    Texts,
    Words,
    Writing,
    Written,
)
from backends.serve.service import ConflictError, ForbiddenError, Service, Trained
from backends.serve.store import NotRegisteredError
from backends.wire import MEDIA_TYPE, WireError, pack
from bbt.backend import Backend
from bbt.errors import BbtError

T = TypeVar("T")

LOCAL_HOSTS = ["localhost", "127.0.0.1", "[::1]"]


class GoneError(Exception):
    """The one who asked has closed the connection."""


STATUS: dict[type[Exception], int] = {
    WireError: 400,
    ForbiddenError: 403,
    NotRegisteredError: 404,
    ConflictError: 409,
    BbtError: 422,
    BusyError: 429,
    QuotaError: 429,
    GoneError: 499,
    ModelError: 500,
}
"""The HTTP state by which each fault is answered; the body names it and says what to do."""

ARRAY: dict[str, Any] = {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
TAKES_ARRAY: dict[str, Any] = {"requestBody": {"required": True, **ARRAY}}
GIVES_ARRAY: dict[int | str, dict[str, Any]] = {200: {"description": "float32 numbers and their CRC-32", **ARRAY}}
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": Fault} for status in (400, 401, 403, 404, 409, 411, 413, 422, 429)
}


def _account(request: Request) -> Account:
    account: Account = request.state.account
    return account


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Holder = Annotated[Account, Depends(_account)]
Served = Annotated[Service, Depends(_service)]

v1 = APIRouter(prefix="/v1", responses=FAULTS)


@v1.get("/model")
def model(service: Served) -> Model:
    """Facts about the model, and what one request may have."""
    return service.model()


@v1.get("/tokens")
async def tokens(service: Served) -> Ids:
    """Ids of all tokens that are not special."""
    return await service.ordinary_ids()


@v1.post("/embeddings", responses=GIVES_ARRAY, response_class=Response)
async def embeddings(service: Served, account: Holder, request: Request, words: Words) -> Response:
    """Word embeddings (1, T, H) of a text or of token ids, to begin a prompt with."""
    return _array(await _wanted(request, service.embeddings(account, words)))


@v1.post("/rows")
async def rows(
    service: Served, account: Holder, request: Request, row_set: RowSet, anchor: Id | None = None
) -> RegisteredRows:
    """Register rows and label words; the id is that of their content. `anchor`, a registered prompt, is what they will
    be scored with: refused at once where the model can have none."""
    return await _wanted(request, service.register_rows(account, row_set, anchor))


@v1.post("/prompts", openapi_extra=TAKES_ARRAY)
async def prompts(
    service: Served,
    account: Holder,
    request: Request,
    n_prompt_tokens: Annotated[int, Query(ge=1)],
) -> Registered:
    """Register a prompt (1, T, H), to be the p0 of a space or the anchor of rows."""
    return service.register_prompt(account, await request.body(), n_prompt_tokens)


@v1.post("/spaces")
async def spaces(service: Served, account: Holder, request: Request, space: Space) -> Registered:
    """Register p0 + A z: A is drawn again here, from its seed."""
    return await _wanted(request, service.register_space(account, space))


@v1.post("/scores", openapi_extra=TAKES_ARRAY, responses=GIVES_ARRAY, response_class=Response)
async def scores(
    service: Served,
    account: Holder,
    request: Request,
    rows: Id,
    space: Id | None = None,
    anchor: Id | None = None,
    join: bool = False,
) -> Response:
    """Label scores (n, B, K) of z (n, d) in a space, or without one of prompts (n, T, H).

    `join`: may be computed together with requests of others on the same rows; the last bits then depend on them.
    """
    body = await request.body()
    return _array(await _wanted(request, service.score(account, body, rows, space, anchor, join)))


@v1.post("/pairs")
async def pairs(service: Served, account: Holder, request: Request, pair_set: PairSet) -> RegisteredPairs:
    """Register rows with their targets; the id is that of their content."""
    return await _wanted(request, service.register_pairs(account, pair_set))


@v1.post("/likelihoods", openapi_extra=TAKES_ARRAY, responses=GIVES_ARRAY, response_class=Response)
async def likelihoods(
    service: Served, account: Holder, request: Request, rows: Id, space: Id | None = None, join: bool = False
) -> Response:
    """Log-likelihoods (n, B), in nats, of registered targets under z (n, d) in a space, or without one under prompts
    (n, T, H). `join` as in `/v1/scores`."""
    body = await request.body()
    return _array(await _wanted(request, service.log_likelihoods(account, body, rows, space, join)))


@v1.post("/contexts")
async def contexts(service: Served, account: Holder, request: Request, context_set: ContextSet) -> RegisteredRows:
    """Register rows that are to be written on in the place of their targets."""
    return await _wanted(request, service.register_contexts(account, context_set))


@v1.post("/texts")
async def texts(service: Served, account: Holder, request: Request, writing: Writing) -> Written:
    """Texts that the model writes after registered contexts under a registered prompt."""
    written = await _wanted(request, service.write(account, writing))
    request.app.state.metrics.new_tokens.inc(written.n_tokens)
    return written


run = APIRouter(prefix="/v1", responses=FAULTS)


@run.post("/classify")
async def classify(service: Served, account: Holder, request: Request, texts: Texts) -> Answers:
    """What the served run says of texts or pairs: labels with their probabilities, or texts."""
    return await _wanted(request, service.classify(account, texts))


def create_app(backend: Backend, keys: Keys, limits: Limits, trained: Trained | None = None) -> FastAPI:
    """The application; `trained` is a run on this backend, to be asked too. Without keys it answers to requests for
    this machine's own names only, so that no web page in a browser here can reach it under another."""
    metrics = Metrics()
    device = Device(backend, limits.queue, limits.candidates, metrics.scored)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(device.close)

    app = FastAPI(title="bbt serve", version="1", lifespan=lifespan, redoc_url=None)
    app.state.service, app.state.metrics = Service(device, limits, trained), metrics
    app.include_router(v1)
    if trained is not None:
        app.include_router(run)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """Whether requests are taken."""
        return JSONResponse({"alive": device.alive}, 200 if device.alive else 503)

    @app.get("/metrics", response_class=Response)
    async def metrics_page() -> Response:
        """For Prometheus."""
        metrics.waiting.set(device.waiting)
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    for fault, status in STATUS.items():
        app.add_exception_handler(fault, _handler(status))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(Gate, keys=keys, metrics=metrics, body_bytes=limits.body_bytes)
    if not len(keys):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_HOSTS)
    return app


def _array(array: Any) -> Response:
    return Response(pack(array), media_type=MEDIA_TYPE)


async def _wanted(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """The answer, as long as somebody waits for it.

    Raises:
        GoneError: nobody does; the answer is cancelled, in line or under way.
    """
    work, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait(list[asyncio.Future[Any]]([work, gone]), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise GoneError("the connection was closed")
        return work.result()
    finally:
        gone.cancel()
        work.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _handler(status: int) -> Any:
    async def handle(request: Request, error: Exception) -> JSONResponse:
        wait, words = getattr(error, "wait", None), getattr(error, "words", ())
        return refusal(status, type(error).__name__, str(error), wait, words)

    return handle


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """The answer that tells the first fault of a JSON body or query, without what was sent: that may not be JSON
    itself."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    return refusal(422, "Invalid", f"{where}: {fault['msg']}")
