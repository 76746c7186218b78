"""A character-level GPT on the source text of Python's own library, in the manner of nanoGPT: no main function,
settings are globals, the next batch is fetched while the GPU works on this one.

python after.py max_iters=100 dropout=0.1
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from model import GPT

import autoresume

eval_interval = 50
eval_iters = 5
max_iters = 200
batch_size = 8
block_size = 32
gradient_accumulation_steps = 2
n_layer = 2
n_head = 2
n_embd = 32
dropout = 0.05
learning_rate = 3e-3
warmup_iters = 20
grad_clip = 1.0
device = "cuda" if torch.cuda.is_available() else "cpu"
exec(Path(__file__).with_name("configurator.py").read_text())

torch.manual_seed(1337)
text = np.frombuffer(Path(argparse.__file__).read_bytes(), dtype=np.uint8)
data = {"train": text[: len(text) * 9 // 10], "val": text[len(text) * 9 // 10 :]}  # np.memmap, if it were larger
context = torch.autocast(device, dtype=torch.bfloat16 if device == "cpu" else torch.float16)


def get_batch(split):
    source = data[split]
    starts = torch.randint(len(source) - block_size, (batch_size,))
    x, y = (
        torch.stack([torch.from_numpy(source[i + ahead : i + ahead + block_size].astype(np.int64)) for i in starts])
        for ahead in (0, 1)
    )
    return x.to(device), y.to(device)


@torch.no_grad()
def estimate_loss():
    model.eval()
    found = {}
    for split in ("train", "val"):
        with context:
            losses = [model(*get_batch(split))[1].item() for _ in range(eval_iters)]
        found[split] = sum(losses) / eval_iters
    model.train()
    return found


def get_lr(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / warmup_iters
    return learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * (it - warmup_iters) / (max_iters - warmup_iters))))


model = GPT(256, block_size, n_layer, n_head, n_embd, dropout).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99))
scaler = torch.amp.GradScaler(device, growth_interval=50)
iter_num, best_val_loss = 0, 1e9
X, Y = get_batch("train")  # fetch the very first batch
run = autoresume.start()
run.track(model=model, optimizer=optimizer, scaler=scaler)
X, Y, iter_num, best_val_loss = run.state.loop if run.restore() else (X, Y, iter_num, best_val_loss)
while True:
    for group in optimizer.param_groups:
        group["lr"] = get_lr(iter_num)
    if iter_num % eval_interval == 0:
        losses = estimate_loss()
        best_val_loss = min(best_val_loss, losses["val"])
        print(f"step {iter_num}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}", flush=True)
    for _ in range(gradient_accumulation_steps):
        with context:
            logits, loss = model(X, Y)
        X, Y = get_batch("train")  # prefetch the next batch while the model works on this one
        scaler.scale(loss / gradient_accumulation_steps).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    iter_num += 1
    run.state.loop = X, Y, iter_num, best_val_loss
    if iter_num > max_iters:
        break
    run.step()
torch.save(model.state_dict(), "gpt.pt")
run.finish()
