"""How many instructions a call retires in user space, where the kernel counts them.

Linux `perf_event_open(2)` on this thread; no other system and no kernel without hardware
events (most virtual machines). Standard library only, so that the gate's workers of any
revision can load it. Counts are nearly free of noise, not quite: hash seed, heap layout and
the SIMD kernels that a library picks for the processor move them, so fix the hash seed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Callable

# perf_event_open(2): (type, config) of an event, and its system call number by machine.
INSTRUCTIONS = (0, 1)
TASK_CLOCK = (1, 1)  # nanoseconds, counted by software: also where no hardware event is
_CALLS = {"x86_64": 298, "aarch64": 241}
_SIZE = 128  # bytes of the attributes
_DISABLED, _NO_KERNEL, _NO_HYPERVISOR = 1 << 0, 1 << 5, 1 << 6
_ENABLE, _DISABLE, _RESET = 0x2400, 0x2401, 0x2403


def count(
    fn: Callable[[], object], event: tuple[int, int] = INSTRUCTIONS, *, calls: int = 3
) -> int | None:
    """The least count of `event` in one of `calls` calls of `fn`; None where nobody counts it."""
    number = _CALLS.get(platform.machine()) if platform.system() == "Linux" else None
    if number is None:
        return None
    attributes = bytearray(_SIZE)
    struct.pack_into("<IIQ", attributes, 0, event[0], _SIZE, event[1])
    struct.pack_into("<Q", attributes, 40, _DISABLED | _NO_KERNEL | _NO_HYPERVISOR)
    raw = (ctypes.c_char * _SIZE).from_buffer(attributes)
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(number, raw, 0, -1, -1, 0)
    if descriptor < 0:
        return None
    try:
        return min(_once(fn, descriptor) for _ in range(calls))
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _once(fn: Callable[[], object], descriptor: int) -> int:
    import fcntl

    fcntl.ioctl(descriptor, _RESET, 0)
    fcntl.ioctl(descriptor, _ENABLE, 0)
    with contextlib.ExitStack() as stack:
        stack.callback(fcntl.ioctl, descriptor, _DISABLE, 0)
        fn()
    return int(struct.unpack("<Q", os.read(descriptor, 8))[0])
