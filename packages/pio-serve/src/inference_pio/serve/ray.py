"""Replicas over the machines of a Ray cluster: the application of a server as a deployment of Ray Serve.

Needs the extra ``ray``. Within one machine ``pio serve --replicas`` does the same with less: it knows which replica has
read a prompt, and brings no processes but the replicas.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from inference_pio.core import LLM
from inference_pio.interfaces import ConfigError, MissingDependencyError
from inference_pio.serve._lifespan import LifespanApp
from inference_pio.serve._models.spec import spec_of
from inference_pio.serve._settings import ServeSettings

if TYPE_CHECKING:
    from types import ModuleType

    from ray.serve import Application
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["build_deployment", "deploy"]


def build_deployment(
    model: str,
    *,
    settings: ServeSettings | None = None,
    replicas: int = 1,
    cpus: int = 1,
    gpus: float = 0,
    served_as: str | None = None,
    name: str = "pio",
    **engine: Any,  # noqa: ANN401 - the parameters of LLM
) -> Application:
    """A deployment that answers as ``pio serve`` does, for ``ray.serve.run``.

    Keys, the list of host names, bounds and limits are those of the settings, and each replica holds to them by itself:
    the limits of a key are per replica. The clocks of slow connections are those of Ray's proxy. Ray chooses replicas
    by how much they have to do. Replicas finish what they have within ``settings.drain_s`` when they are ended.

    Args:
        model: Registered name, folder, GGUF file or hub id; there on every machine.
        settings: What each replica is told. ``host`` must be where Ray's proxy listens.
        replicas: How many.
        cpus: Processors that Ray sets aside for each, and its threads unless ``threads`` says otherwise.
        gpus: GPUs likewise.
        served_as: What requests call the model; None for its own name.
        name: Of the deployment.
        engine: More parameters of :class:`inference_pio.core.LLM`.

    Raises:
        ConfigError: Numbers out of bounds, or settings of what Ray's proxy does.
        MissingDependencyError: Ray Serve is not installed.
    """
    serve = _ray_serve()
    told = ServeSettings() if settings is None else settings
    if replicas < 1 or cpus < 1:
        raise ConfigError(f"replicas and cpus must be at least 1, got {replicas} and {cpus}")
    if told.tls_cert is not None or told.admin_socket is not None:
        raise ConfigError("tls_cert and admin_socket are of pio serve's own listener, and Ray's proxy listens here")
    engine.setdefault("threads", cpus)
    app = UnderProxy(LifespanApp(told, [spec_of(model, partial(LLM, model, **engine), served_as=served_as)]))
    deployment = serve.deployment(
        name=name,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        # Ray's own bound is 5, which would keep batches from ever being larger; ours answers 429 beyond it.
        max_ongoing_requests=told.max_waiting + int(engine.get("max_num_seqs", 64)) + 16,
        graceful_shutdown_timeout_s=told.drain_s,
    )
    bound: Application = deployment(serve.ingress(app)()).bind()
    return bound


def deploy(
    model: str,
    *,
    settings: ServeSettings | None = None,
    application: str = "pio",
    **deployment: Any,  # noqa: ANN401 - the parameters of build_deployment
) -> None:
    """Serve ``model`` on the Ray cluster at hand, at the address of the settings; returns once all replicas serve.

    Args:
        model: As for :func:`build_deployment`.
        settings: As for :func:`build_deployment`.
        application: Name of the application within Ray Serve; ``ray.serve.delete`` ends it.
        deployment: More parameters of :func:`build_deployment`.

    Raises:
        ConfigError: As for :func:`build_deployment`.
        MissingDependencyError: Ray Serve is not installed.
        RuntimeError: A replica could not begin to serve; Ray says why.
    """
    serve = _ray_serve()
    told = ServeSettings() if settings is None else settings
    app = build_deployment(model, settings=told, **deployment)
    serve.start(http_options={"host": told.host, "port": told.port})
    serve.run(app, name=application, route_prefix="/")


class UnderProxy:
    """What Ray's proxy says of a reply, the application does not say a second time.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one life."""

        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [item for item in message["headers"] if item[0] != b"x-request-id"]
            await send(message)

        await self._app(scope, receive, send_once)


def _ray_serve() -> ModuleType:
    if find_spec("ray") is None:
        raise MissingDependencyError("Ray Serve is not installed", hint="pip install 'pio-serve[ray]'")
    from ray import serve

    module: ModuleType = serve
    return module
