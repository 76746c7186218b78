"""A loop in the manner of accelerate's examples. Arguments: how the loop iterates, "seedable" or "plain"."""

import sys

import nasty
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from parts import Model, Numbers, evaluate
from torch.utils.data import DataLoader

from autoresume import Run, autoresume


@autoresume
def main(run: Run) -> None:
    how, sampler = sys.argv[1:]
    set_seed(3)
    config = DataLoaderConfiguration(use_seedable_sampler=sampler == "seedable")
    accelerator = Accelerator(cpu=True, dataloader_config=config, gradient_accumulation_steps=2)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
    train, test = DataLoader(Numbers(22), batch_size=4, shuffle=True), DataLoader(Numbers(7), batch_size=4)
    model, optimizer, train, test, scheduler = accelerator.prepare(model, optimizer, train, test, scheduler)
    run.track(model=model, optimizer=optimizer, scheduler=scheduler)
    for epoch in run.epochs(3):
        batches = run.batches(train) if how == "batches" else train
        for number, x in enumerate(batches):
            with accelerator.accumulate(model):
                loss = (model(x).squeeze(1) - x.sum(1)).square().mean()
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients or how == "batches":
                run.log(loss=loss.item(), first=x[0, 0].item(), number=number, last=accelerator.sync_gradients)
                nasty.place(run.step_count + 1)
                if how != "batches":
                    run.step()
        run.log(test=evaluate(model, test), tested=epoch)
    nasty.finish(model=accelerator.unwrap_model(model), steps=run.step_count)


main()
