"""Several processes under torchrun, by torch.distributed: who am I, and everybody's results side by side."""
import os
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F

from files import BadInput


def start_processes(device="auto"):
    """Join the other processes where torchrun started this one; NCCL between GPUs, gloo between CPUs. Raises BadInput."""
    if int(os.environ.get("WORLD_SIZE") or 1) < 2:
        return
    if device not in ("auto", "cuda", "cpu"):
        raise BadInput(f"--device {device}: under torchrun each process takes the GPU of its place; use cuda, cpu or auto")
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise BadInput(f"WORLD_SIZE is set, and {missing[0]} is not: several processes are started by torchrun")
    cuda = torch.cuda.is_available() and device != "cpu"
    if cuda:
        place = int(os.environ["LOCAL_RANK"])
        if place >= torch.cuda.device_count():
            raise BadInput(f"--nproc-per-node: this machine has {torch.cuda.device_count()} GPUs; use so many, or --device cpu")
        torch.cuda.set_device(place)
    # A process waits for the slowest one, which may encode for hours; torchrun notices one that dies on its machine.
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(days=7))


def end_processes():
    """Part from the other processes when the work is done; one that has failed must not, it could wait for the others forever.

    Else gloo's threads may still hold tensors when the interpreter goes, and the process ends with an abort (pytorch#179291).
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def processes():
    """(rank, number of processes) under torchrun, else (0, 1)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(tensor, fill):
    """(N, C) of every process, C of its own -> side by side (N, sum of widest C), short ones filled up."""
    width = torch.tensor([tensor.shape[1]], device=tensor.device)
    dist.all_reduce(width, dist.ReduceOp.MAX)
    parts = [tensor.new_empty(len(tensor), int(width)) for _ in range(processes()[1])]
    dist.all_gather(parts, F.pad(tensor, (0, int(width) - tensor.shape[1]), value=fill))
    return torch.cat(parts, 1)


def everyone(rows):
    """(K, D) of every process, equally many -> (processes K, D) in order of rank."""
    parts = [torch.empty_like(rows) for _ in range(processes()[1])]
    if len(parts) > 1:
        dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts) if len(parts) > 1 else rows


def own_share(gradient):
    """The gradient of everyone's rows -> the sum over processes of what belongs to this one's rows: everyone()'s adjoint."""
    place, size = processes()
    if size > 1:
        dist.all_reduce(gradient)
    return gradient.chunk(size)[place]


def average(parameters, values, pools):
    """In place: gradients become the mean over all pools of a step, `values` (already means over the own) over processes.

    parameters: their gradients hold the sum over this process's `pools` pools; values: one tensor. Every process gets the
    same bits. A parameter that no embedding depends on, as in BERT's pooler, has a gradient of zero.
    """
    size = processes()[1]
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    if size > 1:
        flat = torch.cat([p.grad.flatten() for p in parameters])
        dist.all_reduce(flat)
        for p, shared in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad.copy_(shared.view_as(p))
        values = values.to(flat.device)
        dist.all_reduce(values)
    for p in parameters:
        p.grad.div_(size * pools)
    return (values / size).cpu()
