"""What a key may be allowed to ask for, and which of it a path needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.serve._routes import ApiRoute

SCOPES: Final = frozenset({"generate", "embed", "tokenize", "models", "metrics"})
"""Those that a key may have."""
ANY: Final = "any"
"""What a route says that every key may ask for: it tells little, or brings files that all browsers have."""
ALL: Final = "all"
"""What a route needs that says nothing: a key without a list of scopes, so that what is new is not open by mistake."""
NO_PLACE: Final = "none"
"""How metrics call whatever is not routed: never a path that a client made up."""


class Place(NamedTuple):
    """Where a request goes.

    Attributes:
        name: The path as it is routed, with its parameters' names.
        scope: What a key needs to ask there.
    """

    name: str
    scope: str


_NOWHERE = Place(NO_PLACE, ALL)


class PlaceMap:
    """Finds a path's route before anything is routed, to count and to refuse by it.

    Args:
        routes: What is served.

    Raises:
        ValueError: Two routes of one path need different scopes, or a scope that is none.
    """

    def __init__(self, routes: Sequence[ApiRoute]) -> None:
        from starlette.routing import compile_path  # reading a key file needs none of it

        self._fixed: dict[str, Place] = {}
        patterned: dict[str, Place] = {}
        for route in routes:
            if route.scope not in SCOPES | {ANY, ALL}:
                raise ValueError(f"the route {route.path!r} has no scope {route.scope!r}")
            places = patterned if "{" in route.path else self._fixed
            if places.setdefault(route.path, Place(route.path, route.scope)).scope != route.scope:
                raise ValueError(f"the routes of {route.path!r} need different scopes")
        self._patterned = [(compile_path(path)[0], place) for path, place in patterned.items()]

    def find(self, path: str) -> Place:
        """Where a request for ``path`` goes; nowhere needs everything."""
        place = self._fixed.get(path)
        if place is None:
            place = next((place for pattern, place in self._patterned if pattern.match(path)), _NOWHERE)
        return place
