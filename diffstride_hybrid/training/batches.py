"""The batches of training and evaluation, shared out among the replicas of a strategy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from diffstride_hybrid.data.datasets import Datasets, Shard


class Batches:
    """Gives every replica an equal share of each batch.

    Args:
        datasets: the data set.
        strategy: of the run.

    Attributes:
        next_step: the training step that gets the next batch of `training`, counted over all epochs.
        training: the batches of training, from the step given to `start`.
    """

    def __init__(self, datasets: Datasets, strategy: tf.distribute.Strategy):
        self.next_step = 0
        self.training: Iterator[Any] | None = None
        self._datasets = datasets
        self._strategy = strategy
        self._evaluation: dict[str, Any] = {}

    def start(self, first_step: int) -> None:
        """Goes to the batch of a training step.

        Args:
            first_step: the step, counted over all epochs.
        """
        self.next_step = first_step
        self.training = iter(self._distributed(functools.partial(self._datasets.training, first_step)))

    def leave_out(self) -> None:
        """Goes past the batch of the next training step."""
        next(self.training)
        self.next_step += 1

    def evaluation(self, split: str) -> Iterator[Any]:
        """The batches of a split, from its first image, again and again.

        Args:
            split: 'train', 'validation' or 'test'.

        Returns:
            An iterator without end: TensorFlow would otherwise ask all workers in each step whether they have data.
        """
        if split not in self._evaluation:
            self._evaluation[split] = self._distributed(lambda shard: self._datasets.evaluation(split, shard).repeat())
        return iter(self._evaluation[split])

    def _distributed(self, batches_of: Callable[..., tf.data.Dataset]) -> Any:
        def batches_of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
            shard = Shard(context.input_pipeline_id, context.num_input_pipelines)
            batches = batches_of(shard=shard)
            if context.num_input_pipelines == context.num_replicas_in_sync:
                return batches
            size = context.get_per_replica_batch_size(self._datasets.batch_size)
            return batches.rebatch(size, drop_remainder=True)

        return self._strategy.distribute_datasets_from_function(batches_of_worker)
