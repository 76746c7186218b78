"""Many objects in one run: every optimizer and scheduler of torch, GradScalers, an EMA, generators, and
`run.state` full of values of every kind, changed in place at each step."""

import random
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path

import nasty
import numpy as np
import torch
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from autoresume import Run, autoresume, pickled


class Environment:
    """Only cloudpickle can store it: its reward is a closure over itself. It draws from generators of its own, one of
    which the script draws from as well."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.numpy, self.torch = generator, torch.Generator().manual_seed(6)
        self.steps = 0
        self.reward = lambda: self.steps * float(self.numpy.random()) + torch.rand(1, generator=self.torch).item()

    def step(self) -> float:
        self.steps += 1
        return self.reward()


OPTIMIZERS = {
    "Adadelta": {},
    "Adafactor": {},
    "Adagrad": {},
    "Adam": {"amsgrad": True},
    "AdamW": {"foreach": True},
    "Adamax": {},
    "ASGD": {},
    "LBFGS": {"max_iter": 2, "history_size": 3},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
    "SGD": {"momentum": 0.9, "nesterov": True},
}


def make_schedulers(new):
    return {
        "step": schedulers.StepLR(new(), 2),
        "lambda": schedulers.LambdaLR(new(), lambda step: 0.9**step),
        "cosine": schedulers.CosineAnnealingLR(new(), 7),
        "warm": schedulers.CosineAnnealingWarmRestarts(new(), 3, 2),
        "one_cycle": schedulers.OneCycleLR(new(), 0.1, total_steps=20),
        "cyclic": schedulers.CyclicLR(new(), 0.01, 0.1, 3),
        "sequence": schedulers.SequentialLR(
            *(lambda o: (o, [schedulers.LinearLR(o, 0.1, total_iters=3), schedulers.ExponentialLR(o, 0.9)], [3]))(new())
        ),
        "chained": schedulers.ChainedScheduler(
            (lambda o: [schedulers.ConstantLR(o, 0.5, 2), schedulers.ExponentialLR(o, 0.9)])(new())
        ),
        "plateau": schedulers.ReduceLROnPlateau(new(), patience=1),
        "multi": schedulers.MultiStepLR(new(), [2, 5]),
        "polynomial": schedulers.PolynomialLR(new(), 8),
    }


@autoresume
def main(run: Run) -> None:
    run.seed(3)
    models = {name: torch.nn.Linear(3, 2) for name in OPTIMIZERS if hasattr(torch.optim, name)}
    optimizers = {name: getattr(torch.optim, name)(models[name].parameters(), **OPTIMIZERS[name]) for name in models}
    parameters = torch.nn.ParameterList()
    stepped = []

    def new_optimizer():
        parameters.append(torch.ones(2))
        stepped.append(torch.optim.SGD([parameters[-1]], lr=0.1, momentum=0.9))
        return stepped[-1]

    scheduled = make_schedulers(new_optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    ema = AveragedModel(models["Adam"], multi_avg_fn=get_ema_multi_avg_fn(0.9))
    nets = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(nets.parameters(), lr=0.01)
    later = torch.nn.Linear(3, 2)
    idle = torch.optim.Adam(later.parameters(), lr=0.01)  # its first step comes late: its state is empty until then
    generators = {"g_torch": torch.Generator().manual_seed(1), "g_numpy": np.random.default_rng(2)}
    generators |= {"g_python": random.Random(3), "g_philox": np.random.Generator(np.random.Philox(4))}
    mine = torch.Generator().manual_seed(5)
    shared = np.random.default_rng(7)
    environment = Environment(shared)

    run.track(**{f"model_{name}": model for name, model in models.items()})
    run.track(**{f"optimizer_{name}": optimizer for name, optimizer in optimizers.items()})
    run.track(**{f"schedule_{name}": scheduler for name, scheduler in scheduled.items()})
    run.track(parameters=parameters, **{f"stepped{index}": optimizer for index, optimizer in enumerate(stepped)})
    run.track(scaler=scaler, ema=ema, **generators, conv=nets, adam=adam, later=later, idle=idle)
    run.track(environment=pickled(environment))
    state = run.state
    state.mine = mine  # the script's own name for it stays good
    state.array, state.tensor = np.zeros((3, 2)), torch.zeros(2, dtype=torch.bfloat16)
    state.list, state.queue, state.tuple = [], deque(maxlen=3), (1, (2.5, None))
    state.inf, state.nan, state.big, state.text = float("inf"), float("nan"), 2**100, "ä\n\0"
    state.scalar, state.bytes, state.complex, state.path = np.float32(1.5), b"\xff", 1 + 2j, Path("a/b")
    state.counts, state.groups, state.set = Counter("aab"), defaultdict(list), {3, 1}
    state.ordered, state.numbered = OrderedDict(b=1, a=2), {0: "zero", (1, 2): "pair"}
    state.unsorted, state.odd = {"b": 1, "a": {"$": "not a tag", "/": "~"}}, {"bool": np.bool_(True), "empty": {}}
    state.flags, state.half = np.array([True, False]), np.arange(3, dtype=np.float16)
    state.zero, state.nothing = torch.tensor(2), torch.empty(0, 3)

    for step in run.steps(7):
        x = torch.randn(5, 3)
        for name, optimizer in optimizers.items():
            optimizer.zero_grad()

            def closure(name=name, optimizer=optimizer):
                optimizer.zero_grad()
                loss = models[name](x).square().mean()
                loss.backward()
                return loss

            closure()
            optimizer.step(closure)
        ema.update_parameters(models["Adam"])
        loss = nets(torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)).square().mean()
        adam.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(adam)
        scaler.update()
        for (name, scheduler), optimizer, parameter in zip(scheduled.items(), stepped, parameters):
            parameter.grad = torch.ones(2) * 0.01
            optimizer.step()
            scheduler.step(float(step % 3)) if name == "plateau" else scheduler.step()
        idle.zero_grad()
        later(x).square().mean().backward()
        if step >= 3:
            idle.step()
        draws = [torch.rand(1, generator=generators["g_torch"]).item(), float(generators["g_numpy"].random())]
        draws += [generators["g_python"].random(), float(generators["g_philox"].normal())]
        draws += [torch.rand(1, generator=mine).item(), random.random(), float(np.random.rand())]
        draws += [environment.step(), float(shared.random())]
        state.array[step % 3] += draws[0]  # in place: what comes back must be writable
        state.tensor += 1
        state.list.append(step)
        state.queue.append(step)
        state.groups["even" if step % 2 == 0 else "odd"].append(step)
        state.counts["a"] += 1
        state.numbered[step] = step
        state.half[0] += 1
        state.inf = min(state.inf, 10.0 - step)
        state.big += 1
        run.log(draws=sum(draws), loss=loss, scale=scaler.get_scale(), **{n: m.weight.sum() for n, m in models.items()})
        nasty.place(run.step_count + 1)
    nasty.finish(
        models=models,
        optimizers=optimizers,
        scheduled=scheduled,
        lrs=[s.get_last_lr() for s in scheduled.values()],
        scaler=scaler,
        ema=ema,
        conv=nets,
        adam=adam,
        later=later,
        idle=idle,
        layout=nets.weight.stride(),
        parameters=parameters,
        stepped=stepped,
        **{key: value for key, value in state.state_dict().items() if key != "mine"},
        unsorted_order=list(state.unsorted),
        mine=mine.get_state(),
        **{
            f"{k}_after": str(g.random()) if k != "g_torch" else str(g.get_state().sum()) for k, g in generators.items()
        },
    )


main()
