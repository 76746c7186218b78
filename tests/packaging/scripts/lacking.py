"""Asks for everything that only an extra brings, and says what it is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import autoresume
from autoresume.errors import UsageError
from autoresume.loggers.publisher import known_loggers, make_logger
from autoresume.restore.download import download


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(range(8))


def tell(ask: Callable[[], Any]) -> None:
    try:
        ask()
    except UsageError as error:
        print(error)


run = autoresume.start()
tell(lambda: run.loader(Stream(), batch_size=2))
for name in known_loggers():
    tell(lambda: make_logger(name))
tell(lambda: download("s3://bucket/model.safetensors", Path("sources")))
run.restore()
