"""Stops a run whose loss or gradients are no longer numbers, and says where and what to try.

On a GPU the numbers of a step are looked at during the next one, so that no step waits for them; before
anything is made of the weights, `flush` looks at those outstanding.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dml.errors import TrainingFailed
from dml.losses import sharded_parameters
from dml.training.gather import mean_over_ranks
from dml.training.worker import Worker

logger = logging.getLogger(__name__)

_NAMED_IDS = 8
_TRY = "Try a lower learning rate, optimizer.clip_norm=1, more warmup_steps, or precision float32."


@dataclass(frozen=True)
class _Pending:
    """One step's loss and the norms of its parameters' gradients, on their way from the device."""

    step: int
    positions: NDArray[np.int64]
    names: list[str]
    numbers: Tensor
    arrived: torch.cuda.Event | None


class Guard:
    """Watches the loss and every gradient of a run.

    It sees the mean loss and the synchronised gradients, which are equal on all workers: either all of them
    stop at a step, or none. What it reads costs one pass over the gradients. Those beyond 1e19, whose norm
    float32 cannot hold, count as no numbers.

    Args:
        learner: the module whose named parameters' gradients are watched.
        worker: this process's place.
        ids: the names of images by their positions in the dataset.
    """

    def __init__(self, learner: nn.Module, worker: Worker, ids: Callable[[Sequence[int]], list[str]]) -> None:
        self.worker, self.ids = worker, ids
        self._parameters = list(learner.named_parameters())
        self._has_shards = bool(sharded_parameters(learner))
        self._pending: _Pending | None = None

    def observe(self, step: int, positions: NDArray[np.int64], loss: Tensor) -> list[float]:
        """Begin to read a step's numbers, after its update; returns the losses now known to be numbers.

        Raises:
            TrainingFailed: this step's loss or a gradient is not finite, on a GPU those of the step before.
        """
        graded = [(name, p.grad) for name, p in self._parameters if p.grad is not None]
        names, gradients = [name for name, _ in graded], [gradient for _, gradient in graded]
        # Of ResNet50 in 8 ms on one thread; their largest elements take 62 ms.
        norms = torch._foreach_norm(gradients) if gradients else ()
        numbers = torch.stack([loss.detach().float(), *(norm.float() for norm in norms)])
        if self._has_shards:  # of a gradient that is no number in one rank's rows all ranks must know
            numbers = mean_over_ranks(numbers)
        known = self.flush()
        arrived = None
        if numbers.is_cuda:
            numbers = numbers.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._pending = _Pending(step, positions, names, numbers, arrived)
        return known if arrived else [*known, *self.flush()]

    def flush(self) -> list[float]:
        """Look at what is outstanding; returns its losses and raises as `observe`."""
        pending, self._pending = self._pending, None
        if pending is None:
            return []
        if pending.arrived is not None:
            pending.arrived.synchronize()
        loss, *norms = pending.numbers.tolist()
        if not math.isfinite(loss):
            self._stop(pending, f"The loss must stay a number; it is {loss}")
        for name, norm in zip(pending.names, norms, strict=True):
            if not math.isfinite(norm):
                self._stop(
                    pending,
                    f"The norms of gradients must stay numbers; with a loss of {loss:.4g} that of {name} is "
                    f"{norm}",
                )
        return [loss]

    def _stop(self, pending: _Pending, finding: str) -> None:
        ids = self.ids(self.worker.collect(pending.positions.tolist()))
        logger.error("step %d failed on the images %s", pending.step, ids)
        more = f" and {len(ids) - _NAMED_IDS} more, all named in the log" if len(ids) > _NAMED_IDS else ""
        raise TrainingFailed(
            f"{finding} at step {pending.step}, on the batch of all workers with the images "
            f"{ids[:_NAMED_IDS]}{more}. {_TRY}"
        )
