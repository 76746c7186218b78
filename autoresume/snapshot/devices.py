"""Copying a device's memory into pinned memory of the host, while the host and the device go on.

Law: the device copies on a stream of its own: after what was queued before, and before what is queued after `hold`.
The host waits only in `Transfer.wait`. What was written to while it was copied is found out: samples of the memory are
read on the device before the copies and behind them. Small tensors go together, since queuing a copy of each would
take the host longer than the device needs for all. Sources are kept alive by whoever asks, until `wait` has returned.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from autoresume.storage import pages

log = logging.getLogger("autoresume")

_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for each device's context, whichever thread asks for it."""
_SMALL_BYTES = 64 * 1024
_MOST_TOGETHER = 32 * 1024 * 1024
"""Of the device's memory, for small tensors on their way."""
_SAMPLES = 256
_SAMPLE_BYTES = 64
_random = random.Random()  # noqa: S311  (where to look; and the script's own generators are not touched)

Pair = tuple[torch.Tensor, torch.Tensor]
"""(target on the host, source on a device)"""


def is_on_device(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cuda"


def current_device() -> int | None:
    """Of CUDA, in the calling thread; None where this process does not use it."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]


def capturing() -> bool:
    """Whether what is done now is only recorded, into a CUDA graph."""
    return current_device() is not None and torch.cuda.is_current_stream_capturing()


@dataclass
class DeviceCopies:
    """What a device is to copy."""

    pairs: list[Pair] = field(default_factory=list)
    small: list[Pair] = field(default_factory=list)
    """As plain bytes."""
    samples: list[torch.Tensor] = field(default_factory=list)
    """Views of some bytes of the sources here and there."""
    _small_bytes: int = 0

    def add(self, target: torch.Tensor, source: torch.Tensor) -> None:
        plain = source.is_contiguous() and not source.is_conj() and not source.is_neg()
        if plain and source.nbytes <= min(_SMALL_BYTES, _MOST_TOGETHER - self._small_bytes):
            self.small.append((_as_bytes(target), _as_bytes(source)))
            self._small_bytes += source.nbytes
        else:
            self.pairs.append((target, source))

    def any(self) -> bool:
        return bool(self.pairs or self.small)

    def extend(self, other: DeviceCopies) -> None:
        self.pairs += other.pairs
        self.small += other.small
        self.samples += other.samples

    def sample(self) -> None:
        """Choose samples of what was added so far; larger tensors get more of them."""
        sources = [source for _, source in (*self.pairs, *self.small) if source.is_contiguous() and source.numel()]
        for source in _random.choices(sources, [one.nbytes for one in sources], k=_SAMPLES) if sources else []:
            flat = source.view(-1)
            count = min(max(1, _SAMPLE_BYTES // flat.element_size()), len(flat))
            begin = _random.randrange(len(flat) - count + 1)
            self.samples.append(_as_bytes(flat[begin : begin + count]))


class Transfer:
    """Copies that devices were told to make.

    `before` was read behind all that was queued when the copies were, `after` behind the copies themselves: whatever
    wrote to the memory meanwhile, and by whatever way, shows in it.
    """

    def __init__(self) -> None:
        self.events: dict[torch.device, Any] = {}
        """The event after each device's last copy."""
        self.watched = True
        """False where there was no room for samples: nobody may write to the sources until all is copied."""
        self._samples: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._together: list[tuple[torch.Tensor, list[torch.Tensor]]] = []

    def wait(self) -> None:
        """Return when the bytes are in their places in the host's memory."""
        for event in self.events.values():
            event.synchronize()
        for found, targets in self._together:
            torch._foreach_copy_(targets, torch.split(found, [len(one) for one in targets]))
        self._together.clear()

    def written(self) -> bool:
        """After `wait`: whether a source was written to while it was copied."""
        return any(not torch.equal(before, after) for before, after in self._samples)


class Streams:
    """Each device's stream for copies. `device` is `torch.cuda`, or something with the same streams and events."""

    def __init__(self, device: Any = torch.cuda) -> None:
        self._device = device
        self._streams: dict[torch.device, Any] = {}

    def start(self, copies: DeviceCopies) -> Transfer:
        """Queue copies behind what every device has in its current stream."""
        transfer = Transfer()
        for place in dict.fromkeys(source.device for _, source in (*copies.pairs, *copies.small)):
            samples = [sample for sample in copies.samples if sample.device == place]
            before = _read(samples)
            stream = self._streams.get(place) or self._streams.setdefault(place, self._device.Stream(place))
            stream.wait_stream(self._device.current_stream(place))
            with self._device.stream(stream):
                pairs = [pair for pair in copies.pairs if pair[1].device == place]
                small = [pair for pair in copies.small if pair[1].device == place]
                found = _read([source for _, source in small])
                if found is not None:
                    transfer._together.append((found, [target for target, _ in small]))
                else:
                    pairs += small
                if pairs:
                    targets, sources = zip(*pairs)
                    torch._foreach_copy_(targets, sources, non_blocking=True)
                after = _read(samples)
                if before is not None and after is not None:
                    transfer._samples.append((before, after))
                elif samples:
                    transfer.watched = False
                transfer.events[place] = stream.record_event()
        return transfer

    def hold(self, transfer: Transfer) -> None:
        """What is queued from now on waits, on the device, for the copies. The caller does not."""
        for place, event in transfer.events.items():
            self._device.current_stream(place).wait_event(event)


def _read(views: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Bytes one behind the other, in the host's memory once the stream has come so far; None without room for them."""
    if not views:
        return None
    try:
        return torch.cat(list(views)).to("cpu", non_blocking=True)
    except torch.OutOfMemoryError:
        return None


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)


def pin(view: memoryview) -> bool:
    """Register memory with CUDA, if this process uses that: only into such memory a device copies by itself, while the
    host goes on. Whether it is registered now; where it is not, copies are right, and the host waits for them."""
    if current_device() is None:
        return False
    error = torch.cuda.cudart().cudaHostRegister(  # type: ignore[no-untyped-call]
        pages.address(view), len(view), _PORTABLE
    )
    if int(error):
        log.debug("%.1f MB can't be pinned: CUDA error %d", len(view) / 1e6, int(error))
        with contextlib.suppress(RuntimeError):
            torch.zeros(1, device="cuda")  # CUDA keeps the error for the next launch, which shall not be the script's
    return not int(error)


def unpin(view: memoryview) -> None:
    torch.cuda.cudart().cudaHostUnregister(pages.address(view))  # type: ignore[no-untyped-call]
