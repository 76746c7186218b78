"""Deep Q-learning: a paddle learns to catch a falling ball.

python after.py
"""

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import smooth_l1_loss

from autoresume import Run, autoresume

STEPS, WARM_UP, CAPACITY, BATCH = 2000, 200, 10_000, 32
HEIGHT, WIDTH = 6, 5


class Catch:
    """The ball falls one row a step, with a gust of wind now and then; the paddle on the last row moves by one."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.caught: deque[bool] = deque(maxlen=100)
        self.reset()

    def reset(self) -> None:
        self.row, self.ball, self.paddle = 0, int(self.random.integers(WIDTH)), WIDTH // 2

    def observe(self) -> np.ndarray:
        board = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
        board[self.row, self.ball] = board[-1, self.paddle] = 1
        return board.ravel()

    def step(self, action: int) -> tuple[float, bool]:
        """Actions: 0 left, 1 stay, 2 right. Returns reward and whether the ball is down; then a new one falls."""
        self.paddle = min(max(self.paddle + action - 1, 0), WIDTH - 1)
        self.row += 1
        if self.random.random() < 0.1:
            self.ball = min(max(self.ball + int(self.random.choice([-1, 1])), 0), WIDTH - 1)
        if self.row < HEIGHT - 1:
            return 0.0, False
        caught = self.ball == self.paddle
        self.caught.append(caught)
        self.reset()
        return (1.0 if caught else -1.0), True

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row, "ball": self.ball, "paddle": self.paddle, "caught": self.caught}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class ReplayBuffer:
    """The last CAPACITY transitions, as arrays. Its state is the part that is filled."""

    def __init__(self) -> None:
        shapes = {"now": HEIGHT * WIDTH, "action": 1, "reward": 1, "after": HEIGHT * WIDTH, "done": 1}
        self.arrays = {name: np.zeros((CAPACITY, width), dtype=np.float32) for name, width in shapes.items()}
        self.added = 0

    def add(self, **transition: Any) -> None:
        for name, value in transition.items():
            self.arrays[name][self.added % CAPACITY] = value
        self.added += 1

    def sample(self, random: np.random.Generator) -> dict[str, torch.Tensor]:
        rows = random.integers(min(self.added, CAPACITY), size=BATCH)
        return {name: torch.from_numpy(array[rows]) for name, array in self.arrays.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"added": self.added, **{name: array[: self.added] for name, array in self.arrays.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.added = state["added"]
        for name, array in self.arrays.items():
            array[: self.added] = state[name]


def learn(q: nn.Module, target: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        goal = batch["reward"] + 0.95 * (1 - batch["done"]) * target(batch["after"]).max(1, keepdim=True).values
    loss = smooth_l1_loss(q(batch["now"]).gather(1, batch["action"].long()), goal)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@autoresume
def main(run: Run) -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    environment, buffer = Catch(random), ReplayBuffer()
    q, target = (nn.Sequential(nn.Linear(HEIGHT * WIDTH, 64), nn.ReLU(), nn.Linear(64, 3)) for _ in range(2))
    optimizer = torch.optim.Adam(q.parameters(), lr=1e-3)
    run.track(q=q, target=target, optimizer=optimizer, buffer=buffer, environment=environment, random=random)
    for step in run.steps(STEPS):
        now = environment.observe()
        epsilon = max(0.02, 1 - step / 1000)
        with torch.no_grad():
            best = int(q(torch.from_numpy(now)).argmax())
        action = int(random.integers(3)) if random.random() < epsilon else best
        reward, done = environment.step(action)
        buffer.add(now=now, action=action, reward=reward, after=environment.observe(), done=done)
        loss = learn(q, target, optimizer, buffer.sample(random)) if step >= WARM_UP else 0.0
        if step % 100 == 0:
            target.load_state_dict(q.state_dict())
        caught = float(np.mean(environment.caught or [0]))
        if step % 500 == 499:
            print(f"step {step + 1}: {caught:.0%} of the last 100 balls are caught, loss {loss:.4f}", flush=True)
    torch.save(q.state_dict(), "q.pt")


if __name__ == "__main__":
    main()
