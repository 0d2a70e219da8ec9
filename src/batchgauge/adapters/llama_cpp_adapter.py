"""llama.cpp as an engine: real batched decode through llama-cpp-python's low-level API.

One `llama_decode` call takes one token of every sequence; prompts of all lengths
go into one batch without padding. The KV cache is emptied before every batch, so
no prefix is ever reused. Sampling is ours, the tokenizer is llama.cpp's own.
`llama-cpp:f32` runs the same weights dequantised, from a second file that is written
once into the user's cache folder (`gguf_copy`). Left out: GPU offload, LoRA, embeddings,
AMX tiles (see `has_amx`).

Letters: B sequences, V vocabulary, N tokens of one call.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from batchgauge.adapters.gguf_copy import as_gguf, float32_copy
from batchgauge.adapters.stepped import FloatArray, SteppedEngine
from batchgauge.core.default_model import open_model
from batchgauge.errors import UserError
from batchgauge.protocols import TokenBatch

UBATCH = 512  # tokens of one physical step


def open_engine(argument: str, model: Path | None, threads: int) -> SteppedEngine:
    """The model as it is, or dequantised to float32 when `argument` is `f32`.

    Of a Hugging Face folder a GGUF is written into the user's cache folder.
    """
    if argument not in {"", "f32"}:
        raise UserError(f"The engine 'llama-cpp' has no variant '{argument}'; expected 'f32'.")
    file = open_model(model)
    stepper = LlamaCppStepper(float32_copy(file) if argument else as_gguf(file), threads)
    return SteppedEngine(
        f"llama-cpp {argument}".strip(),
        stepper,
        LlamaCppTokenizer(stepper.vocabulary),
        file.metadata,
    )


def open_tokenizer(_argument: str, model: Path | None) -> LlamaCppTokenizer:
    """llama.cpp's tokenizer alone: the weights are not loaded."""
    return LlamaCppTokenizer.from_file(as_gguf(open_model(model)))


class LlamaCppStepper:
    """A GGUF in llama.cpp, advanced step by step; see `batchgauge.adapters.stepped.Stepper`.

    The context's settings measured fastest on the default model on a CPU: each sequence has a
    stream of its own instead of masking everybody's cells in one buffer.
    """

    padded_positions = 0  # prompts of all lengths go in end to end

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._model = _load(path)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.vocabulary = vocabulary
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(vocabulary))
        self.context_length = int(llama_cpp.llama_model_n_ctx_train(self._model))
        self.max_rows = int(llama_cpp.llama_max_parallel_sequences())
        self._threads = threads
        self._context: Any = None
        self._capacity = (0, 0)  # sequences, tokens each
        self._lengths = np.zeros(0, dtype=np.int32)  # [B] tokens held, of the active sequences
        self._active = np.zeros(0, dtype=np.int32)  # [B] sequence ids

    def prefill(self, rows: Sequence[Sequence[int]], reserve: int) -> FloatArray:
        """Run the prompts from empty caches; logits [B, V] of each one's last token."""
        self._fit(len(rows), max(map(len, rows)) + reserve)
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_clear(memory, False)
        batch = TokenBatch.from_lists(rows)
        lengths = batch.counts.astype(np.int32)  # [B]
        last = batch.offsets[1:] - 1  # [B] where each prompt ends
        positions = np.arange(batch.ids.size) - np.repeat(batch.offsets[:-1], lengths)  # [N]
        self._active = np.arange(len(rows), dtype=np.int32)
        self._lengths = lengths
        wanted = np.zeros(batch.ids.size, dtype=np.int8)
        wanted[last] = 1
        sequences = np.repeat(self._active, lengths)
        step = int(llama_cpp.llama_n_batch(self._context))
        parts = []
        for at in range(0, batch.ids.size, step):
            part = slice(at, at + step)
            logits = self._run(batch.ids[part], positions[part], sequences[part], wanted[part])
            parts.append(logits.copy() if batch.ids.size > step else logits)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def decode(self, ids: npt.NDArray[np.int32]) -> FloatArray:
        """Append one token [B] to every active sequence; logits [B, V]."""
        wanted = np.ones(ids.size, dtype=np.int8)
        logits = self._run(ids, self._lengths, self._active, wanted)
        self._lengths = self._lengths + 1
        return logits

    def keep(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Go on with only these of the active sequences, in this order."""
        self._active, self._lengths = self._active[rows], self._lengths[rows]
        return rows

    def set_threads(self, threads: int) -> None:
        """Use so many threads from now on."""
        self._threads = threads
        if self._context:
            llama_cpp.llama_set_n_threads(self._context, threads, threads)

    def close(self) -> None:
        """Free the context and the model; the stepper cannot be used afterwards."""
        if self._context:
            llama_cpp.llama_free(self._context)
        if self._model:
            llama_cpp.llama_model_free(self._model)
        self._context = self._model = None

    def _run(
        self,
        ids: npt.NDArray[np.int32],
        positions: npt.NDArray[np.integer],
        sequences: npt.NDArray[np.int32],
        wanted: npt.NDArray[np.int8],
    ) -> FloatArray:
        """One `llama_decode` of N tokens; logits [sum(wanted), V]."""
        N = ids.size
        ids = np.ascontiguousarray(ids, dtype=np.int32)
        positions = np.ascontiguousarray(positions, dtype=np.int32)
        ones = np.ones(N, dtype=np.int32)
        sequences = np.ascontiguousarray(sequences)
        wanted = np.ascontiguousarray(wanted)
        addresses = sequences.ctypes.data + 4 * np.arange(N, dtype=np.uint64)  # of sequences[i]
        pointer_to = ctypes.POINTER
        batch = llama_cpp.llama_batch(
            N,
            ids.ctypes.data_as(pointer_to(ctypes.c_int32)),
            None,
            positions.ctypes.data_as(pointer_to(ctypes.c_int32)),
            ones.ctypes.data_as(pointer_to(ctypes.c_int32)),
            addresses.ctypes.data_as(pointer_to(pointer_to(ctypes.c_int32))),
            wanted.ctypes.data_as(pointer_to(ctypes.c_int8)),
        )
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise UserError(f"llama.cpp could not run {N} tokens (llama_decode gave {status}).")
        outputs = int(wanted.sum())
        if not outputs:
            return np.empty((0, self.vocab_size), dtype=np.float32)
        flat = llama_cpp.llama_get_logits(self._context)  # waits for the result
        return np.ctypeslib.as_array(flat, shape=(outputs, self.vocab_size))

    def _fit(self, sequences: int, tokens: int) -> None:
        """Make a context for so many sequences of so many tokens, unless the present one fits."""
        if sequences <= self._capacity[0] and tokens <= self._capacity[1]:
            return
        sequences = max(sequences, self._capacity[0])
        tokens = 256 * -(-max(tokens, self._capacity[1]) // 256)  # llama.cpp pads to 256 itself
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * tokens
        params.n_seq_max = sequences
        params.n_batch = max(params.n_batch, UBATCH)
        params.n_ubatch = UBATCH
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = False
        if self._context:
            llama_cpp.llama_free(self._context)
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise UserError(
                f"llama.cpp cannot hold {sequences} sequences of {tokens} tokens; "
                "expected a smaller batch, shorter prompts or a lower max_tokens."
            )
        self._capacity = (sequences, tokens)


class LlamaCppTokenizer:
    """llama.cpp's own tokenizer; it has no batch call, so a batch is a loop."""

    name = "llama-cpp"

    def __init__(self, vocabulary: Any, model: Any = None) -> None:
        self.raw = vocabulary
        self._model = model  # keeps it loaded
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(vocabulary))

    @classmethod
    def from_file(cls, path: Path) -> LlamaCppTokenizer:
        """Read a GGUF's vocabulary only. Raises UserError when llama.cpp cannot."""
        model = _load(path, vocab_only=True)
        return cls(llama_cpp.llama_model_get_vocab(model), model)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of one text. Raises UserError for a lone surrogate."""
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise UserError("A text has a lone surrogate; expected what UTF-8 can hold.") from None
        room = len(data) + 1
        ids = np.empty(room, dtype=np.int32)
        pointer = ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = llama_cpp.llama_tokenize(
            self.raw, data, len(data), pointer, room, False, allow_special
        )
        if count < 0:
            raise UserError(f"llama.cpp could not tokenize a text of {len(text)} characters.")
        rows: list[int] = ids[:count].tolist()
        return rows

    def encode_many(self, texts: Sequence[str], *, allow_special: bool = False) -> TokenBatch:
        """The ids of many texts, one after the other."""
        return TokenBatch.from_lists([self.encode(t, allow_special=allow_special) for t in texts])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included. Raises UserError for an unknown id."""
        if len(ids) and not (min(ids) >= 0 and max(ids) < self.vocab_size):
            raise UserError(f"An id is unknown; expected 0 to {self.vocab_size - 1}.")
        tokens = np.asarray(ids, dtype=np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        room = 16 * tokens.size
        while True:
            data = ctypes.create_string_buffer(room)
            size = llama_cpp.llama_detokenize(
                self.raw, pointer, tokens.size, data, room, False, True
            )
            if size >= 0:
                return data.raw[:size].decode("utf-8", "replace")
            room = -size

    def decode_many(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of many id sequences, one after the other."""
        return [self.decode(row) for row in rows]


def has_amx() -> bool:
    """Whether llama.cpp would repack quantised weights for AMX tiles.

    Its first step with those often ends the process on virtual machines
    (ggml-org/llama.cpp#20824), so there the weights stay as the file has them.
    """
    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()


def _load(path: Path, *, vocab_only: bool = False) -> Any:
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.vocab_only = vocab_only
    params.use_extra_bufts = not has_amx()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise UserError(f"llama.cpp cannot load '{path}'; expected a GGUF file it supports.")
    return model
