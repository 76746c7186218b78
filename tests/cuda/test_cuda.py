"""The CUDA paths, on a machine that has a GPU: they run by themselves there."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from autoresume.checkpoint.retain import Keep
from autoresume.format.names import CheckpointName
from autoresume.storage import LocalStorage
from autoresume.training.agreement import Ranks
from autoresume.training.restore import choose_and_read
from autoresume.training.saver import Saver
from autoresume.training.sinks import ThreadSink

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
SCRIPT = Path(__file__).with_name("train.py")


def launch(folder: Path, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AUTORESUME_RUN_DIR": str(folder), "CUBLAS_WORKSPACE_CONFIG": ":4096:8", **variables}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=170)


def values(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 61))
    return [record["values"] for record in records]


def final_file(folder: Path) -> bytes:
    (last,) = folder.glob("checkpoints/*_U60_*")
    return (last / "shards" / "rank-00000.safetensors").read_bytes()


TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]


@pytest.mark.parametrize(
    ("command", "variables"),
    [
        ([str(SCRIPT)], {}),
        ([*TORCHRUN, str(SCRIPT)], {"BACKEND": "nccl"}),
        (["-m", "autoresume", "run", "--grace", "30", str(SCRIPT)], {}),
    ],
    ids=["one process", "torchrun and NCCL", "node daemon"],
)
@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
def test_a_gpu_run_goes_on_bit_for_bit(command: list[str], variables: dict, signal: str, tmp_path: Path) -> None:
    """Weights, fused optimizer, scaler, CUDA's generators and the workers' order survive a signal and a kill."""
    calm = launch(tmp_path / "calm", command, **variables)
    assert calm.returncode == 0, calm.stderr
    first = launch(tmp_path / "rough", command, **variables, STOP="31", SIGNAL=signal)
    if "autoresume" not in command:
        assert first.returncode != 0
        second = launch(tmp_path / "rough", command, **variables)
        assert second.returncode == 0, second.stderr
    else:
        assert first.returncode == 0, first.stderr
    assert values(tmp_path / "rough") == values(tmp_path / "calm")
    assert final_file(tmp_path / "rough") == final_file(tmp_path / "calm")


def test_a_snapshot_of_a_gpu_is_of_its_boundary(tmp_path: Path) -> None:
    """The host does not wait for the copy: kernels of the next steps are queued behind it, and what is stored is the state
    of the boundary, parameters (copied late) and statistics (copied at once) alike."""
    torch.manual_seed(0)
    storage, none = LocalStorage(tmp_path), frozenset()
    sink = ThreadSink(storage, Keep(10), lambda: None)
    saver = Saver("run", Ranks(), sink, None, lambda: sink)
    model = torch.nn.Sequential(
        torch.nn.Linear(2000, 2000), torch.nn.BatchNorm1d(2000), torch.nn.Linear(2000, 500)
    ).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    objects = {"model": model, "optimizer": optimizer}

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(64, 2000, device="cuda")).square().mean().backward()
        optimizer.step()
        saver.boundary()

    step()
    saver.prepare(objects, none)
    for number in range(1, 4):
        step()
        expected = {key: value.cpu() for key, value in model.state_dict().items()}
        moments = [state["exp_avg"].cpu() for state in optimizer.state.values()]
        saver.save(CheckpointName(number, 1, 0, 0), objects, none, {}, urgent=False)
        assert saver._pending is not None
        for _ in range(3):
            step()
        saver.settle()
        while not sink.idle():
            time.sleep(0.01)
        restored = choose_and_read(storage, "run", Ranks(), lambda: None, {})
        assert restored is not None
        assert restored.manifest.checkpoint.step == number
        for key, value in expected.items():
            assert torch.equal(restored.states["model"][key], value), key
        for index, value in enumerate(moments):
            assert torch.equal(restored.states["optimizer"]["state"][index]["exp_avg"], value)
    assert not saver.torn
    saver.close()
