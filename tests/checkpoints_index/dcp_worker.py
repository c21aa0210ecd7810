"""One of two ranks that save a sharded model as a torch.distributed.checkpoint.

python dcp_worker.py fsdp2|huggingface RANK WORLD PORT OUT
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import fully_shard


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            [torch.nn.Linear(6, 5), torch.nn.Linear(5, 3, bias=False)]
        )
        self.head = torch.nn.Linear(3, 7)

    def forward(self, x):
        return self.head(self.blocks[1](self.blocks[0](x)))


def model():
    torch.manual_seed(0)
    return Model()


def main():
    kind, rank, world, port, out = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    lm = model()
    for block in lm.blocks:
        fully_shard(block)
    fully_shard(lm)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=0.0, weight_decay=0.0)
    lm(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    weights, optim = get_state_dict(lm, optimizer)
    if kind == "fsdp2":
        dcp.save({"model": weights, "optim": optim, "step": 7}, checkpoint_id=out)
    else:
        writer = dcp.HuggingFaceStorageWriter(path=out, save_distributed=True)
        dcp.save(weights, storage_writer=writer)
    dist.barrier()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    # Ranks that are torn down in another order than they were set up may wait for each other.
    sys.stdout.flush()
    os._exit(0)
