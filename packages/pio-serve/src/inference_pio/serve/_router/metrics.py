"""Metrics of a router: those of its replicas, told apart by a label, and its own.

A label rather than sums: a replica that is started again counts from 0, which Prometheus' ``rate`` knows how to read in
one series but not in a sum; and whoever wants the sum has ``sum by``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from inference_pio.serve._router.state import RouterState


def merged(texts: Mapping[int, str], *, without: Collection[str] = ()) -> Iterator[str]:
    """Lines of one text in which each family comes once, as the format wants it.

    Args:
        texts: What each replica counts, by its number, in Prometheus' text format as this server writes it.
        without: Names of families that are left out.
    """
    families: dict[str, list[str]] = {}
    for place, text in texts.items():
        family: list[str] = []
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                known = name in families
                family = families.setdefault(name, [])
                if not known:
                    family.append(line)
            elif line.startswith("#"):
                if len(family) == 1:
                    family.append(line)
            else:
                family.append(_labelled(line, place))
    for name, family in families.items():
        if name not in without:
            yield from family


def _labelled(line: str, place: int) -> str:
    """A sample, with the number of the replica that it is of."""
    label = f'replica="{place}"'
    brace, space = line.find("{"), line.find(" ")
    if brace == -1 or space < brace:  # a sample without labels
        return f"{line[:space]}{{{label}}}{line[space:]}"
    separator = "" if line[brace + 1] == "}" else ","
    return f"{line[: brace + 1]}{label}{separator}{line[brace + 1 :]}"


def router_lines(router: RouterState) -> Iterator[str]:
    """What the router itself counts."""
    balance, replicas = router.balance, router.replicas
    ready = set(replicas.ready)
    by_replica: tuple[tuple[str, str, str, list[int]], ...] = (
        ("replica_ready", "gauge", "Whether it takes requests.", [int(r.place in ready) for r in replicas.all]),
        ("open_requests", "gauge", "Requests that it has.", [load.open for load in balance.loads]),
        ("requests_total", "counter", "Requests that it was given.", [load.requests for load in balance.loads]),
        ("restarts_total", "counter", "How often it was started again.", replicas.restarts),
    )
    for name, kind, text, values in by_replica:
        yield from _head(name, kind, text)
        for place, value in enumerate(values):
            yield f'pio:router_{name}{{replica="{place}"}} {value}'
    totals = (
        ("retries_total", "Requests that were given to a second replica, the first having ended.", router.retries),
        ("cut_off_total", "Streams that an error ended, their replica having ended.", router.cut_off),
        ("prefix_blocks_total", "Blocks of prompts that were handed out.", balance.blocks),
        ("prefix_matched_blocks_total", "Those that the chosen replica was given before.", balance.matched_blocks),
    )
    for name, text, value in totals:
        yield from _head(name, "counter", text)
        yield f"pio:router_{name} {value}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP pio:router_{name} {text}"
    yield f"# TYPE pio:router_{name} {kind}"
