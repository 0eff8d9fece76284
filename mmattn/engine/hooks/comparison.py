"""The hook that draws image, ground truth and prediction side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmattn.evaluation.image_source import ImageSource
from mmattn.evaluation.output_names import check_outputs, png_names
from mmattn.registry import HOOKS
from mmattn.visualization.comparison import compare_labels, compare_objects, save_picture
from mmattn.visualization.objects import Objects
from mmattn.visualization.window import show_picture

if TYPE_CHECKING:
    from mmdet.structures import DetDataSample
    from mmseg.structures import SegDataSample


@HOOKS.register_module()
class ComparisonHook(Hook):
    """Writes or shows a picture of ground truth and prediction side by side for every test image.

    Args:
        out_dir: folder for the pictures, named by `png_names`; None to write none.
        score: least score of the detections to draw.
        show: show each picture in a window.
        wait_time: seconds that it stays there; 0 until a key is pressed.

    Raises:
        UsageError: before the test, if a picture would be written into a folder of test images.
    """

    def __init__(
        self, out_dir: str | None, score: float = 0.3, show: bool = False, wait_time: float = 2.0
    ) -> None:
        self.out_dir, self.score = Path(out_dir) if out_dir else None, score
        self.show, self.wait_time = show, wait_time
        self.names: dict[str, Path] = {}
        self.source: ImageSource | None = None

    def prepare(self, dataset) -> None:
        """Name the pictures of a data set, and check that none overwrites a test image."""
        self.names = png_names(dataset)
        if self.out_dir:
            check_outputs(dataset, self.out_dir, self.names.values(), '--show-dir')

    def before_test(self, runner: Runner) -> None:
        dataset = runner.test_dataloader.dataset
        if not self.names:
            self.prepare(dataset)
        self.source = ImageSource(dataset)

    def after_test_iter(self, runner: Runner, batch_idx, data_batch=None, outputs=None) -> None:
        for sample in outputs:
            path = str(sample.img_path)  # a transform of the pipeline may have changed it
            name = self.names.get(path) or Path(f'{Path(path).stem}.png')
            picture = self._picture(sample)
            if self.out_dir:
                save_picture(self.out_dir / name, picture)
            if self.show:
                show_picture(picture, str(name), self.wait_time)

    def _picture(self, sample: 'DetDataSample | SegDataSample') -> np.ndarray:
        path = str(sample.img_path)
        image, style = self.source.read(path), self.source.style(path)
        if 'pred_instances' in sample:
            truth = sample.get('gt_instances')
            truth = None if truth is None else Objects.from_instances(truth)
            prediction = Objects.from_instances(sample.pred_instances, self.score)
            return compare_objects(image, truth, prediction, **style)
        truth = sample.gt_sem_seg.data[0].cpu().numpy() if 'gt_sem_seg' in sample else None
        return compare_labels(image, truth, sample.pred_sem_seg.data[0].cpu().numpy(), **style)
