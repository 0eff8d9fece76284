"""Training loops that can start in the middle of an epoch."""

from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from .data import ResumableLoader


class EpochLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, able to start in the middle of one.

    Attributes:
        batches: the batches of the training; set by the runner.
    """

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        first = self._iter - self._epoch * len(self.dataloader)
        self.batches.start(self._epoch, first)
        for index in range(first, len(self.dataloader)):
            self.run_iter(index, self.batches.next_of_epoch())
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


class IterLoop(IterBasedTrainLoop):
    """mmengine's loop over iterations; its batches come from a `ResumableLoader`."""

    @property
    def batches(self) -> ResumableLoader:
        return self.dataloader_iterator

    @batches.setter
    def batches(self, value: ResumableLoader) -> None:
        self.dataloader_iterator = value


LOOPS = {'EpochBasedTrainLoop': EpochLoop, 'IterBasedTrainLoop': IterLoop}
