"""What all requests of one router share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.serve._errors import unavailable

if TYPE_CHECKING:
    from inference_pio.serve._errors import ApiError
    from inference_pio.serve._router.balance import Balance
    from inference_pio.serve._router.replicas import Replicas
    from inference_pio.serve._server_state import ServerState


class RouterState:
    """Replicas, and who gets what of them. For one event loop.

    Args:
        server: Limits, and whether new requests are still taken.
        replicas: The processes.
        balance: Who is given what.

    Attributes:
        server: The same.
        replicas: The same.
        balance: The same.
        retries: Requests that were given to a second replica because the first one ended.
        cut_off: Streams that ended with an error because their replica did.
        loading: Whether the replicas have not all begun to serve yet.
    """

    def __init__(self, server: ServerState, replicas: Replicas, balance: Balance) -> None:
        self.server = server
        self.replicas = replicas
        self.balance = balance
        self.retries = 0
        self.cut_off = 0
        self.loading = True

    def not_ready(self) -> ApiError:
        """503, because no replica takes requests."""
        if self.loading:
            return unavailable("the model is loading", "model_loading", retry_after_s=2)
        return unavailable(f"none of {len(self.replicas.all)} replicas is ready", "no_replica", retry_after_s=2)
