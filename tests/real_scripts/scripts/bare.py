"""A bare tensor is what is trained (an image, poses), kept in run.state and held by its optimizer."""

import nasty
import torch

from autoresume import Run, autoresume


@autoresume
def main(run: Run) -> None:
    run.seed(3)
    target = torch.randn(3, 4)
    image = torch.rand(3, 4, requires_grad=True)
    optimizer = torch.optim.Adam([image], lr=0.1)
    run.track(optimizer=optimizer)
    run.state.image = image
    for _ in run.steps(8):
        optimizer.zero_grad()
        loss = (image - target + 0.1 * torch.rand_like(image)).square().mean()
        loss.backward()
        optimizer.step()
        run.log(loss=loss.item())
        nasty.place(run.step_count + 1)
    nasty.finish(image=image.detach())


main()
