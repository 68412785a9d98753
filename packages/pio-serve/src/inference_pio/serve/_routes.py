"""Every route, in one table: what is not here is not served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inference_pio.serve._anthropic.message_types import CountRequest, Message, MessageRequest, TokenCount
from inference_pio.serve._anthropic.messages import count_tokens, messages
from inference_pio.serve._health import Status, Version, health, livez, show_version
from inference_pio.serve._metrics import metrics
from inference_pio.serve._models.served import ModelCard, ModelList, list_models, show_model
from inference_pio.serve._openai.chat import chat_completions
from inference_pio.serve._openai.chat_types import ChatCompletion, ChatRequest
from inference_pio.serve._openai.completion_types import Completion, CompletionRequest
from inference_pio.serve._openai.completions import completions
from inference_pio.serve._openai.embedding_types import EmbeddingList, EmbeddingRequest
from inference_pio.serve._openai.embeddings import embeddings
from inference_pio.serve._openai.response_types import Response, ResponseRequest
from inference_pio.serve._openai.responses import responses
from inference_pio.serve._openai.token_types import DetokenizedText, DetokenizeRequest, TokenizeRequest, Tokens
from inference_pio.serve._openai.tokens import detokenize, tokenize
from inference_pio.serve._openapi import show_openapi
from inference_pio.serve._pages import asset, chat_page, dashboard_page
from inference_pio.serve._scopes import ALL, ANY

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import msgspec
    from starlette.types import ASGIApp

    from inference_pio.serve._call import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRoute:
    """A route.

    Attributes:
        method: ``"GET"`` or ``"POST"``.
        path: Its path, with parameters as Starlette writes them.
        handler: Makes the reply.
        summary: What it does, for the OpenAPI document.
        reply: Type of the reply; None where it is no JSON of a type.
        media: Types of such replies, as ``Content-Type`` names them.
        request: Type of the request's body; None where there is none.
        costs: Whether it counts against its key and holds up the end of the server.
        streams: Whether ``stream: true`` brings events instead.
        scope: What a key needs to ask there: one of ``SCOPES``, ``ANY`` for any key, or ``ALL`` for a key without a
            list of scopes.
    """

    method: str
    path: str
    handler: Callable[[Call], Coroutine[Any, Any, ASGIApp]]
    summary: str
    reply: type[msgspec.Struct] | None
    media: tuple[str, ...] = ()
    request: type[msgspec.Struct] | None = None
    costs: bool = False
    streams: bool = False
    scope: str = ALL


ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute(
        method="POST",
        path="/v1/chat/completions",
        handler=chat_completions,
        summary="Answer a conversation.",
        request=ChatRequest,
        reply=ChatCompletion,
        costs=True,
        streams=True,
        scope="generate",
    ),
    ApiRoute(
        method="POST",
        path="/v1/completions",
        handler=completions,
        summary="Continue prompts.",
        request=CompletionRequest,
        reply=Completion,
        costs=True,
        streams=True,
        scope="generate",
    ),
    ApiRoute(
        method="POST",
        path="/v1/responses",
        handler=responses,
        summary="Answer a conversation, in the newer shape.",
        request=ResponseRequest,
        reply=Response,
        costs=True,
        streams=True,
        scope="generate",
    ),
    ApiRoute(
        method="POST",
        path="/v1/messages",
        handler=messages,
        summary="Answer a conversation, in Anthropic's shape.",
        request=MessageRequest,
        reply=Message,
        costs=True,
        streams=True,
        scope="generate",
    ),
    ApiRoute(
        method="POST",
        path="/v1/messages/count_tokens",
        handler=count_tokens,
        summary="How many tokens a conversation has.",
        request=CountRequest,
        reply=TokenCount,
        costs=True,
        scope="tokenize",
    ),
    ApiRoute(
        method="POST",
        path="/v1/embeddings",
        handler=embeddings,
        summary="Vectors of texts.",
        request=EmbeddingRequest,
        reply=EmbeddingList,
        costs=True,
        scope="embed",
    ),
    ApiRoute(
        method="GET",
        path="/v1/models",
        handler=list_models,
        summary="List the models.",
        reply=ModelList,
        scope="models",
    ),
    ApiRoute(
        method="GET",
        path="/v1/models/{model:path}",
        handler=show_model,
        summary="Show a model.",
        reply=ModelCard,
        scope="models",
    ),
    ApiRoute(
        method="POST",
        path="/tokenize",
        handler=tokenize,
        summary="Tokens of a text or a conversation.",
        request=TokenizeRequest,
        reply=Tokens,
        costs=True,
        scope="tokenize",
    ),
    ApiRoute(
        method="POST",
        path="/detokenize",
        handler=detokenize,
        summary="The text of tokens.",
        request=DetokenizeRequest,
        reply=DetokenizedText,
        costs=True,
        scope="tokenize",
    ),
    ApiRoute(
        method="GET", path="/health", handler=health, summary="Ask every engine for a token.", reply=Status, scope=ANY
    ),
    ApiRoute(method="GET", path="/livez", handler=livez, summary="Whether the process lives.", reply=Status, scope=ANY),
    ApiRoute(
        method="GET",
        path="/metrics",
        handler=metrics,
        summary="Metrics, as Prometheus reads them.",
        reply=None,
        media=("text/plain",),
        scope="metrics",
    ),
    ApiRoute(
        method="GET",
        path="/openapi.json",
        handler=show_openapi,
        summary="This document.",
        reply=None,
        media=("application/json",),
        scope=ANY,
    ),
    ApiRoute(method="GET", path="/version", handler=show_version, summary="What serves.", reply=Version, scope=ANY),
    ApiRoute(
        method="GET",
        path="/",
        handler=chat_page,
        summary="The page to chat with.",
        reply=None,
        media=("text/html",),
        scope=ANY,
    ),
    ApiRoute(
        method="GET",
        path="/dashboard",
        handler=dashboard_page,
        summary="Draws the metrics.",
        reply=None,
        media=("text/html",),
        scope=ANY,
    ),
    ApiRoute(
        method="GET",
        path="/static/{name}",
        handler=asset,
        summary="Files of the pages.",
        reply=None,
        media=("text/javascript", "text/css", "image/svg+xml"),
        scope=ANY,
    ),
)
