"""Intersection over union with the figure of every class."""

from collections.abc import Sequence

from mmseg.evaluation import IoUMetric as SegIoUMetric

from mmattn.registry import METRICS


@METRICS.register_module()
class IoUMetric(SegIoUMetric):
    """MMSegmentation's `IoUMetric` that also returns `IoU.<class>` in percent.

    Areas are added as integers: fp32 sums lose pixels above 2**24, which a few images reach.
    """

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        before = len(self.results)
        super().process(data_batch, data_samples)
        self.results[before:] = [tuple(a.long() for a in areas) for areas in self.results[before:]]

    def compute_metrics(self, results: list) -> dict[str, float]:
        metrics = super().compute_metrics(results)
        if not self.format_only:
            intersection, union = (sum(area).numpy() for area in list(zip(*results))[:2])
            for name, i, u in zip(self.dataset_meta['classes'], intersection, union):
                metrics[f'IoU.{name}'] = round(100 * i / u, 2) if u else float('nan')
        return {name: round(float(value), 2) for name, value in metrics.items()}
