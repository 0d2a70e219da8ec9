"""The compiled kernels on narrower vectors than this processor's: other tiles, same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from llvmlite import binding

HERE = Path(__file__).parent
HASWELL = "+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+popcnt,+sse4.1,+sse4.2"


@pytest.mark.skipif(
    not binding.get_host_cpu_features().get("avx512f"), reason="AVX-512 is not what runs here"
)
def test_kernels_of_avx2_give_the_same_numbers(tmp_path):
    """Products, attention, activations and layers, compiled for AVX2, pass their own tests."""
    files = [
        str(HERE / f"test_{name}.py") for name in ("products", "attention", "activations", "layers")
    ]
    kinds = ("Q4_0", "Q5_1", "Q8_0", "F16")  # every way of leaving codes
    test = f"{HERE / 'test_quantised.py'}::test_every_kind_gives_the_bits_of_float32"
    files += [f"{test}[{kind}]" for kind in kinds]
    environment = os.environ | {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": HASWELL,
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, HERE / "narrow_vectors.py", "-q", "-p", "no:cacheprovider", *files],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
