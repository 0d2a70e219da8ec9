"""Which batch size to run: hardware, cost and memory models, suggestion, adaptive sizing.

    suggestion = suggest_batch_size(
        workload=Lengths.uniform(32, 64),          # prompt and generated tokens
        cost_model=CostModel.prior(shape, detect_hardware()),
        config=SizingConfig(latency_budget_ms=2000),
    )
    print(suggestion.sentence())

`optimal_for_tokenizer(tokenizer)` and `optimal_for_engine(engine)` are the short way:
they calibrate once per machine and model, remember that, and return a size.
Below the core: imports nothing of it, only the protocols.
"""

from batchgauge.machine.hardware import HardwareProfile, detect_hardware, simulated_profiles
from batchgauge.sizing.automatic import optimal_for_engine, optimal_for_tokenizer, traffic_lengths
from batchgauge.sizing.calibration import Extent, calibrate_engine
from batchgauge.sizing.cost_model import CostModel
from batchgauge.sizing.lengths import Lengths
from batchgauge.sizing.memory_model import MemoryModel, ModelShape
from batchgauge.sizing.suggest import suggest_batch_size
from batchgauge.sizing.suggestion import BatchSizeSuggestion, SizingConfig

__all__ = [
    "BatchSizeSuggestion",
    "CostModel",
    "Extent",
    "HardwareProfile",
    "Lengths",
    "MemoryModel",
    "ModelShape",
    "SizingConfig",
    "calibrate_engine",
    "detect_hardware",
    "optimal_for_engine",
    "optimal_for_tokenizer",
    "simulated_profiles",
    "suggest_batch_size",
    "traffic_lengths",
]
