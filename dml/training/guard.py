"""Guard that stops a run if its loss or a gradient is not finite, with the step, the images and advice.

On a GPU the values of a step are checked during the next step, so that no step has to wait. `flush` checks
the outstanding values before the weights are used for anything else.
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
    """The loss and gradient norms of one step, while they are copied from the device."""

    step: int
    positions: NDArray[np.int64]
    names: list[str]
    numbers: Tensor
    arrived: torch.cuda.Event | None


class Guard:
    """Checks the loss and every gradient of a run.

    It checks the mean loss and the synchronized gradients, which are equal on all workers: either all workers
    stop at a step, or none. The cost is one pass over the gradients. Gradients beyond 1e19, whose norm
    overflows float32, count as infinite.

    Args:
        learner: module whose gradients are checked.
        worker: this worker.
        ids: maps positions in the dataset to image ids.
    """

    def __init__(self, learner: nn.Module, worker: Worker, ids: Callable[[Sequence[int]], list[str]]) -> None:
        self.worker, self.ids = worker, ids
        self._parameters = list(learner.named_parameters())
        self._has_shards = bool(sharded_parameters(learner))
        self._pending: _Pending | None = None

    def observe(self, step: int, positions: NDArray[np.int64], loss: Tensor) -> list[float]:
        """Start checking a step after its update; returns the losses that are now known to be finite.

        Raises:
            TrainingFailed: the loss or a gradient is not finite: of this step, or on a GPU of the previous.
        """
        graded = [(name, p.grad) for name, p in self._parameters if p.grad is not None]
        names, gradients = [name for name, _ in graded], [gradient for _, gradient in graded]
        # 8 ms for ResNet50 on one thread; maxima instead of norms take 62 ms.
        norms = torch._foreach_norm(gradients) if gradients else ()
        numbers = torch.stack([loss.detach().float(), *(norm.float() for norm in norms)])
        if self._has_shards:  # all ranks must see a NaN in the rows of one rank
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
        """Check the outstanding step; returns its losses and raises like `observe`."""
        pending, self._pending = self._pending, None
        if pending is None:
            return []
        if pending.arrived is not None:
            pending.arrived.synchronize()
        loss, *norms = pending.numbers.tolist()
        if not math.isfinite(loss):
            self._stop(pending, f"The loss must be finite; it is {loss}")
        for name, norm in zip(pending.names, norms, strict=True):
            if not math.isfinite(norm):
                self._stop(
                    pending,
                    f"The norms of gradients must be finite; with a loss of {loss:.4g} that of {name} is "
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
