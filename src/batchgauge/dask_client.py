"""A Dask scheduler that somebody else runs: reached, with workers, of the versions used here.

Imported only where an address or processes were asked for; `batchgauge[distributed]` has it.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from distributed import Client

from batchgauge.errors import UserError

_CONNECT_S = 15
_TOGETHER = ("python", "dask", "distributed", "msgpack", "cloudpickle", "batchgauge")


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the scheduler at `address`. Raises UserError where none answers or works."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    client, reason = None, ""
    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())[:120]
    if client is None:
        # Ends the client that failed now: while the next one starts, which holds the lock that
        # this takes, the process would hang.
        gc.collect()
        raise UserError(
            f"The Dask scheduler '{address}' does not answer ({reason}); expected an "
            "address such as tcp://10.0.0.1:8786."
        )
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise UserError(f"The Dask scheduler '{address}' has no workers; start some.")
        check_versions(client)
        yield client


def check_versions(client: Client) -> None:
    """Raise UserError when scheduler, workers and this process differ in what must agree."""
    found: Any = client.get_versions(packages=["batchgauge"])
    own = _versions(found["client"])
    for who, said in [("scheduler", found["scheduler"]), *found["workers"].items()]:
        theirs = _versions(said)
        place = "The Dask scheduler" if who == "scheduler" else f"The Dask worker '{who}'"
        for name in _TOGETHER:
            if who == "scheduler" and name == "batchgauge":
                continue  # it never runs any of it
            if own.get(name) != theirs.get(name):
                raise UserError(
                    f"{place} has {name} {theirs.get(name) or 'not at all'}, this process "
                    f"{own.get(name)}; expected the same on both."
                )


def _versions(said: Mapping[str, Any] | None) -> dict[str, str]:
    """Package to version; Python by its minor version."""
    if not said:
        return {}
    host, packages = dict(said["host"]), dict(said["packages"])
    python = str(packages.get("python") or host.get("python", ""))
    return {**packages, "python": ".".join(python.split(".")[:2])}
