"""Poisson arrivals for the simulator's tests."""

from functools import partial

from batchgauge.simulate.arrivals import bursty

poisson = partial(bursty, burstiness=1.0)
