"""The CUDA paths, on a machine that has a GPU: they run by themselves there."""

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from autoresume import start
from autoresume.checkpoint.retain import Keep
from autoresume.format.names import CheckpointName
from autoresume.load.read_checkpoint import choose_and_read
from autoresume.ranks.agreement import Ranks
from autoresume.snapshot.devices import pin, unpin
from autoresume.snapshot.saver import Saver
from autoresume.snapshot.sinks import ThreadSink
from autoresume.state import rng
from autoresume.storage import LocalStorage

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
SCRIPT = Path(__file__).with_name("train.py")


NONE: frozenset[str] = frozenset()


def launch(folder: Path, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AUTORESUME_RUN_DIR": str(folder), "CUBLAS_WORKSPACE_CONFIG": ":4096:8", **variables}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=170)


def values(folder: Path, steps: int = 60) -> list[dict]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    return [record["values"] for record in records]


def final_file(folder: Path, steps: int) -> bytes:
    (last,) = folder.glob(f"checkpoints/*_U{steps}_*")
    return (last / "shards" / "rank-00000.safetensors").read_bytes()


TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]


@pytest.mark.parametrize(
    ("command", "variables"),
    [
        ([str(SCRIPT)], {}),
        ([*TORCHRUN, str(SCRIPT)], {"BACKEND": "nccl"}),
        (["-m", "autoresume", "run", "--grace", "30", str(SCRIPT)], {}),
        (["-m", "autoresume", "run", "--grace", "30", "--nproc", "2", str(SCRIPT)], {"BACKEND": "gloo"}),
    ],
    ids=["one process", "torchrun and NCCL", "node daemon", "two ranks that share the GPU"],
)
@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
def test_a_gpu_run_goes_on_bit_for_bit(command: list[str], variables: dict, signal: str, tmp_path: Path) -> None:
    """Weights, fused optimizer, scaler, CUDA's generators and the workers' order survive a signal and a kill."""
    steps = 30 if "2" in command else 60
    calm = launch(tmp_path / "calm", command, **variables)
    assert calm.returncode == 0, calm.stderr
    first = launch(tmp_path / "rough", command, **variables, STOP="21", SIGNAL=signal)
    if "autoresume" not in command:
        assert first.returncode != 0
        second = launch(tmp_path / "rough", command, **variables)
        assert second.returncode == 0, second.stderr
    else:
        assert first.returncode == 0, first.stderr
    assert values(tmp_path / "rough", steps) == values(tmp_path / "calm", steps)
    assert final_file(tmp_path / "rough", steps) == final_file(tmp_path / "calm", steps)


@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_run_changes_its_kind_of_device(first: str, second: str, tmp_path: Path) -> None:
    """Weights, optimizer and position go over from a GPU to a machine without one, and back; what can't (the numbers that a
    device draws) is said."""
    begun = launch(tmp_path, [str(SCRIPT)], DEVICE=first, STOP="31", FULL_PRECISION="1")
    assert begun.returncode != 0
    gone = {"CUDA_VISIBLE_DEVICES": ""} if second == "cpu" else {}
    ended = launch(tmp_path, [str(SCRIPT)], DEVICE=second, FULL_PRECISION="1", **gone)
    assert ended.returncode == 0, ended.stderr
    assert "goes on after step 3" in ended.stderr
    assert "random numbers of the device are not those that would have come" in ended.stderr
    assert len(values(tmp_path)) == 60


def test_the_drill_follows_a_gpu_run(tmp_path: Path) -> None:
    """`autoresume drill` compares what a GPU computes, and what its generators hold, step by step."""
    schedule = [{"action": "kill", "at": at, "step": step, "rank": 0} for at, step in (("step", 7), ("forward", 14))]
    (tmp_path / "schedule.json").write_text(json.dumps(schedule))
    words = ["--schedule", str(tmp_path / "schedule.json"), "--max-steps", "20", "--save-every", "3 steps", "--json"]
    command = ["-m", "autoresume", "drill", *words, "--output", str(tmp_path / "drill"), str(SCRIPT)]
    done = launch(tmp_path / "run", command)
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)["verdict"] == "identical"


class Model:
    """Something large on the GPU, its fused optimizer, and a saver of both."""

    def __init__(self, folder: Path, width: int = 2000, between: Any = None, **options: Any) -> None:
        torch.manual_seed(0)
        self.storage = LocalStorage(folder)
        self.sink = ThreadSink(self.storage, Keep(100), lambda: None)
        self.saver = Saver("run", Ranks(), self.sink, None, lambda: self.sink)
        middle = between() if between is not None else torch.nn.BatchNorm1d(width)
        layers = torch.nn.Linear(width, width), middle, torch.nn.Linear(width, width)
        self.model = torch.nn.Sequential(*layers).cuda()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **{"fused": True, **options})
        self.objects = {"model": self.model, "optimizer": self.optimizer}
        self.width = width
        self.input = torch.randn(64, width, device="cuda")

    def compute(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.input).square().mean().backward()
        self.optimizer.step()

    def step(self) -> None:
        self.compute()
        self.saver.at_boundary()

    def now(self) -> list[torch.Tensor]:
        moments = [value["exp_avg"] for value in self.optimizer.state.values()]
        return [one.detach().cpu().clone() for one in (*self.model.state_dict().values(), *moments)]

    def save(self, number: int) -> list[torch.Tensor]:
        """Overlapped; what it must hold."""
        expected = self.now()
        self.saver.save(CheckpointName(number, 1, 0, 0), self.objects, NONE, {}, urgent=False)
        return expected

    def stored(self, number: int) -> list[torch.Tensor]:
        self.saver.finish_handover()
        while not self.sink.idle():
            time.sleep(0.01)
        restored = choose_and_read(self.storage, "run", Ranks(), lambda: None, {})
        assert restored is not None
        assert restored.manifest.checkpoint.step == number
        moments = [value["exp_avg"] for value in restored.states["optimizer"]["state"].values()]
        return [*restored.states["model"].values(), *moments]


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[Model]:
    made = Model(tmp_path)
    for _ in range(2):
        made.step()
    made.saver.prepare(made.objects, NONE)
    yield made
    made.saver.close()


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_snapshot_of_a_gpu_is_of_its_boundary(trained: Model) -> None:
    """The host does not wait for the copy: kernels of the next steps are queued behind it, and what is stored is the state
    of the boundary, parameters (copied late) and statistics (copied at once) alike."""
    for number in range(1, 4):
        trained.step()
        expected = trained.save(number)
        assert trained.saver._pending is not None
        assert trained.saver._pending.begun.late.events
        for _ in range(3):
            trained.step()
        assert_equal(trained.stored(number), expected)
    assert not trained.saver.torn
    assert all(arena in trained.saver._arenas._pinned for arena in trained.saver._arenas._arenas)


def test_what_is_written_on_a_gpu_meanwhile_is_seen(tmp_path: Path) -> None:
    """Parameters that a script writes to behind torch's back, while they are copied, cost that snapshot, which is never
    handed over; from then on all is copied before training goes on. What is written after the copy harms nothing."""
    made = Model(tmp_path, between=torch.nn.ReLU)  # without statistics, which training waits for
    made.step()
    made.step()
    expected = made.save(1)
    torch.cuda.synchronize()
    for parameter in made.model.parameters():
        parameter.data.mul_(2)
    assert_equal(made.stored(1), expected)
    made.step()
    (stream,) = made.saver._streams._streams.values()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(2_000_000_000)  # the copies wait for their turn
    made.saver.save(CheckpointName(2, 1, 0, 0), made.objects, NONE, {}, urgent=False)
    for parameter in made.model.parameters():
        parameter.data.mul_(2)
    made.saver.finish_handover()
    assert made.saver.torn == {"E0_U2_S0-0001"}
    made.step()
    expected = made.save(3)
    for parameter in made.model.parameters():
        parameter.data.mul_(2)
    assert_equal(made.stored(3), expected)
    made.saver.close()


def test_a_step_in_a_cuda_graph_is_saved_whole(tmp_path: Path) -> None:
    """A step that is captured, also while a snapshot is under way, is captured; its replays are not seen by hooks, and what
    is saved between them is the state of the boundary all the same."""
    made = Model(tmp_path, capturable=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            made.step()
    torch.cuda.current_stream().wait_stream(side)
    expected = made.save(1)
    graph = torch.cuda.CUDAGraph()
    made.optimizer.zero_grad()
    with torch.cuda.graph(graph):
        made.compute()
    assert_equal(made.stored(1), expected)
    for number in range(2, 5):
        graph.replay()
        made.saver.at_boundary()
        expected = made.save(number)
        graph.replay()
        made.saver.at_boundary()
        assert_equal(made.stored(number), expected)
    assert not made.saver.torn
    made.saver.close()


def test_the_host_waits_for_nothing(tmp_path: Path) -> None:
    """Boundaries, `run.log` of what the device still computes, and the saver's own work leave the host ahead of the device:
    torch's check for such waits finds none, and the device is still busy with what was queued before."""
    made = Model(tmp_path / "alone")
    run = start(run_dir=str(tmp_path / "run"), save_every=1000)
    run.track(model=made.model, optimizer=made.optimizer)
    run.restore()
    for _ in range(3):
        made.step()
        run.step()
    made.save(1)  # which makes the memory for it
    made.saver.finish_handover()
    torch.cuda.set_sync_debug_mode("error")
    try:
        stream = torch.cuda.current_stream()
        for number in range(2, 5):
            torch.cuda._sleep(2_000_000_000)
            made.compute()
            run.log(loss=made.model[0].weight.mean(), lr=0.1)
            run.step()
            made.saver.at_boundary()
            made.saver.save(CheckpointName(number, 1, 0, 0), made.objects, NONE, {}, urgent=False)
            assert not stream.query(), "the device has run dry"
            made.compute()
            assert not stream.query()
            made.saver.finish_handover()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not made.saver.torn
    run.finish()
    made.saver.close()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 5, 6]
    assert all(line["values"]["lr"] == 0.1 and isinstance(line["values"]["loss"], float) for line in lines)


def test_generators_of_a_gpu_go_on() -> None:
    """What `put` sets draws what would have been drawn, and neither of both draws."""
    torch.cuda.manual_seed(5)
    torch.rand(10, device="cuda")
    state, before = rng.get_rng_state(), rng.rng_digests()
    assert list(state["cuda"]) == [torch.cuda.current_device()]
    expected = torch.rand(10, device="cuda")
    assert rng.rng_digests()["cuda"] != before["cuda"]
    rng.set_rng_state(state)
    assert rng.rng_digests() == before
    assert torch.equal(torch.rand(10, device="cuda"), expected)


def test_memory_that_cannot_be_pinned_is_no_error_of_the_script(tmp_path: Path) -> None:
    """CUDA keeps an error for the next one who launches a kernel: a refused registration leaves none behind."""
    torch.zeros(1, device="cuda")
    memory = memoryview(mmap.mmap(-1, 1 << 20))
    assert pin(memory)
    assert not pin(memory)
    assert int((torch.ones(3, device="cuda") * 2).sum()) == 6
    unpin(memory)
    assert pin(memory)
    unpin(memory)
