"""An OpenAI-compatible server over the engine: it translates, and it guards. No torch."""

from inference_pio.serve._app import create_app
from inference_pio.serve._keys import KeyRing
from inference_pio.serve._lifecycle import PioServer, serve
from inference_pio.serve._models.spec import ModelSpec, PlannedModel
from inference_pio.serve._server_state import ServerState
from inference_pio.serve._settings import Bounds, ServeSettings

__all__ = [
    "Bounds",
    "KeyRing",
    "ModelSpec",
    "PioServer",
    "PlannedModel",
    "ServeSettings",
    "ServerState",
    "create_app",
    "serve",
]
