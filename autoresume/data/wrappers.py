"""What is known of other libraries: of those that wrap a loader in a class of their own, which is no DataLoader, and of
datasets.

Law: facts about others' classes stand here, and nowhere else.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any


def wrapper_of(loader: Any) -> Any:
    """The object in whose `__iter__`, a generator, `loader` is being iterated; None if the script does it itself."""
    frame = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("autoresume."):
        frame = frame.f_back  # type: ignore[assignment]
    code = frame.f_code if frame is not None else None
    if code is None or code.co_name != "__iter__" or not code.co_flags & inspect.CO_GENERATOR or not code.co_varnames:
        return None
    found = frame.f_locals.get(code.co_varnames[0])
    return None if found is loader else found


def batches_held(wrapper: Any) -> int | None:
    """How many batches it holds back from the loop; None if that is not known."""
    return 1 if _is_accelerates(wrapper) else None


def after_empty_pass(wrapper: Any) -> None:
    """Its loader has given nothing, since all of the epoch was trained on: it counts that epoch nevertheless.

    accelerate 1.15 adds to `iteration`, which its samplers' order depends on, only behind an epoch's last batch.
    """
    if _is_accelerates(wrapper) and isinstance(getattr(wrapper, "iteration", None), int):
        wrapper.iteration += 1


def state_is_incomplete(dataset: Any) -> bool:
    """Whether its `state_dict` is known to leave something out.

    Hugging Face's datasets 5.2 fill a shuffle buffer anew after a resume, with other items.
    """
    part = getattr(dataset, "_ex_iterable", None)
    for _ in range(20):
        if part is None or type(part).__name__ == "BufferShuffledExamplesIterable":
            break
        part = getattr(part, "ex_iterable", None)
    return part is not None


def _is_accelerates(wrapper: Any) -> bool:
    return type(wrapper).__module__ == "accelerate.data_loader"
