"""Batch norm where a batch is embedded in chunks: each chunk is normalised by its own statistics.

Hoffer et al. 2017, arXiv:1705.08741, call it ghost batch norm. It is another model than batch norm over the
whole batch, so a configuration must ask for it; frozen batch norm is the same either way. Its running
statistics move once a step, towards the mean over the chunks of all workers. With that W workers are one, as
long as their shares are cut into the same chunks.
"""

from typing import Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dml.errors import InvalidSetting


def refuse_training_batch_norm(encoder: nn.Module) -> None:
    """Raise InvalidSetting for an encoder that chunks would make another model."""
    training = [
        name
        for name, layer in encoder.named_modules()
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)
    ]
    if training:
        raise InvalidSetting(
            f"A batch in chunks is normalised like the whole only by frozen batch norms; this encoder trains "
            f"{len(training)}, the first at {training[0]!r}. Set encoder.freeze_batch_norm, or "
            "training.ghost_batch_norm to normalise each chunk by itself."
        )


class ChunkStatistics:
    """The running statistics of all batch norms of a module that learn them, during one step.

    Within the context a batch norm keeps the plain mean of its chunks' statistics since `collect`; at its end
    the running statistics, as they were before, move once towards that, or not at all after an error.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers = [
            _Layer(layer)
            for layer in module.modules()
            if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
        ]

    @property
    def tensors(self) -> list[Tensor]:
        """What has been collected, to be averaged over ranks in place."""
        return [statistic for layer in self._layers for statistic in layer.statistics]

    def __enter__(self) -> Self:
        return self

    def collect(self) -> None:
        """Forget what was seen so far: the step's chunks follow, each once, from `begin_chunk` on."""
        for layer in self._layers:
            layer.batch_norm.reset_running_stats()

    def begin_chunk(self, number: int) -> None:
        """Say which chunk comes, counted from 0: the plain mean weighs it by 1 over those so far.

        torch would find that out by itself (momentum None), by asking the device in every layer.
        """
        for layer in self._layers:
            layer.batch_norm.momentum = 1.0 / (number + 1)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for layer in self._layers:
            layer.move(not error)


class _Layer:
    """A batch norm and what it was before the step."""

    def __init__(self, batch_norm: _BatchNorm) -> None:
        mean, variance, count = (
            batch_norm.running_mean,
            batch_norm.running_var,
            batch_norm.num_batches_tracked,
        )
        assert mean is not None
        assert variance is not None
        assert count is not None
        self.batch_norm, self.statistics, self.count = batch_norm, [mean, variance], count
        self.momentum = batch_norm.momentum
        self.count_before = count.clone()
        self.before = [statistic.clone() for statistic in self.statistics]

    def move(self, once: bool) -> None:
        self.batch_norm.momentum = self.momentum
        # Counts stay on their device: as a Python number each layer's would be a wait in every step.
        self.count.copy_(self.count_before + once)
        weight: Tensor | float = 0.0
        if once:
            weight = 1.0 / self.count if self.momentum is None else self.momentum
        for statistic, before in zip(self.statistics, self.before, strict=True):
            statistic.copy_(before.lerp(statistic, weight))
