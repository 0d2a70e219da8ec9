"""Runs tests as on a processor without AVX-512: `python narrow_vectors.py PYTEST_ARGUMENTS`.

For `test_narrow_vectors`: Numba itself is told by NUMBA_CPU_NAME and NUMBA_CPU_FEATURES.
"""

import sys

import pytest
from llvmlite import binding

WIDE = ("avx512", "avx10", "amx")
real = binding.get_host_cpu_features


def narrow():
    """This processor's features, those of wide vectors off."""
    features = real()
    for name in features:
        features[name] = features[name] and not name.startswith(WIDE)
    return features


binding.get_host_cpu_features = narrow

if __name__ == "__main__":
    from batchgauge.core.kernels import vectors

    if vectors.LANES != 8:
        sys.exit(f"vectors have {vectors.LANES} numbers, expected 8")
    sys.exit(pytest.main(sys.argv[1:]))
