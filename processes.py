"""Several processes under torchrun, by torch.distributed: who am I, and everybody's results side by side."""
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F


def start_processes():
    """Join the other processes where torchrun started this one; NCCL between GPUs, gloo between CPUs."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def processes():
    """(rank, number of processes) under torchrun, else (0, 1)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(tensor, fill):
    """(N, C) of every process, C of its own -> side by side (N, sum of widest C), short ones filled up."""
    size = processes()[1]
    if size == 1:
        return tensor
    width = torch.tensor([tensor.shape[1]], device=tensor.device)
    dist.all_reduce(width, dist.ReduceOp.MAX)
    parts = [tensor.new_empty(len(tensor), int(width)) for _ in range(size)]
    dist.all_gather(parts, F.pad(tensor, (0, int(width) - tensor.shape[1]), value=fill))
    return torch.cat(parts, 1)
