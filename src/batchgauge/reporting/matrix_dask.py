"""Studies on the workers of a Dask scheduler, each alone on its machine; imported when asked for.

A worker offers itself by a resource, so that two studies never share a machine:

    dask worker tcp://10.0.0.1:8786 --nthreads 1 --resources "machine=1"

A study is a process of its own there, started by the same command as here; its `data/` and
`reports/` come back as one archive. Model and workload are paths on the worker's machine.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from distributed import as_completed

from batchgauge.dask_client import connected
from batchgauge.errors import UserError

RESOURCE = "machine"


@dataclass(frozen=True, slots=True)
class DistantStudy:
    """What a worker sent back of one study."""

    name: str
    exit_code: int
    last_line: str
    archive: bytes

    def unpack(self, folder: Path) -> None:
        """Put the files where a study here would have; those of an earlier one go first."""
        rmtree(folder, ignore_errors=True)
        with zipfile.ZipFile(io.BytesIO(self.archive)) as files:
            files.extractall(folder)


def studies_elsewhere(address: str, wanted: Mapping[str, Sequence[str]]) -> Iterator[DistantStudy]:
    """Run each study, by its arguments of `batchgauge study`, on a machine of its own.

    Raises UserError for a scheduler that does not answer, or none of whose workers has the
    resource.
    """
    with connected(address) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        if not any((worker.get("resources") or {}).get(RESOURCE, 0) >= 1 for worker in workers):
            raise UserError(
                f"No Dask worker of '{address}' has a machine to itself; start workers with "
                f"--resources '{RESOURCE}=1'."
            )
        futures = [
            client.submit(_study, name, list(arguments), resources={RESOURCE: 1}, pure=False)
            for name, arguments in wanted.items()
        ]
        names = {future.key: name for future, name in zip(futures, wanted, strict=True)}
        for future in as_completed(futures, loop=client.loop):
            if (problem := future.exception()) is not None:
                reason = " ".join(str(problem).split())[:300]
                yield DistantStudy(names[future.key], 1, f"its worker failed ({reason})", b"")
            else:
                yield future.result()


def _study(name: str, arguments: Sequence[str]) -> DistantStudy:
    """On the worker: the command, and what it left in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="batchgauge-study-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "batchgauge", "study", *arguments, "--out", folder],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        said = (done.stderr if done.returncode else done.stdout).strip().splitlines()
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as files:
            for top in ("data", "reports"):
                for path in sorted(Path(folder, top).rglob("*")):
                    files.write(path, path.relative_to(folder))
        return DistantStudy(name, done.returncode, said[-1] if said else "", archive.getvalue())
