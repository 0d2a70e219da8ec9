"""The preflight: names the BLAS, and tells of a pinned core."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from batchgauge.machine import preflight


def test_the_report_names_the_blas_and_its_threads():
    """What is loaded has a name, a version and a number of threads."""
    report = preflight.check()
    assert report.blas
    with preflight.limit_threads(1):
        assert preflight.blas_identity()[1] == 1


def test_without_a_pin_there_is_no_remedy():
    """A fresh Python with a clean environment uses what the processor could use."""
    code = "from batchgauge.machine.preflight import check; print(check().remedy or 'none')"
    environment = {k: v for k, v in os.environ.items() if k != preflight.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "none"


def test_a_pinned_slower_core_is_told_with_its_remedy():
    """A core that the processor outgrew is named beside the better one."""
    report = preflight.check()
    if report.blas != "openblas" or not preflight.unpinned_core():
        pytest.skip("only OpenBLAS has core types")
    if preflight.unpinned_core() == "Nehalem":
        pytest.skip("this processor can do no better")
    code = (
        "from batchgauge.machine import preflight; r = preflight.check(); print(r.core, r.remedy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {preflight.VARIABLE: "Nehalem"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("Nehalem ")
    assert "OPENBLAS_CORETYPE=Nehalem makes OpenBLAS use its Nehalem kernels" in done.stdout
    assert "unset it before Python starts" in done.stdout
