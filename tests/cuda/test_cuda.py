"""The CUDA paths, on a machine that has a GPU: they run by themselves there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
