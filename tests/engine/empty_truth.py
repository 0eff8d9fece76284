"""Two steps of each family of networks by DDP, where rank 1 has no object and no label."""

import sys
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch import distributed as dist

from mmattn.engine.network import build_network

SIZE = 64, 96
DETECTORS = 'faster_rcnn_r18_cbam_bccd', 'retinanet_r18_gc_bccd', 'mask_rcnn_r18_gc_dsb2018'
SEGMENTORS = [f'{name}_r18_street' for name in ('fcn', 'ccnet', 'ann', 'danet', 'gcnet')]
NARROW = {
    'backbone.stem_channels': 8,
    'backbone.base_channels': 8,
    'decode_head.channels': 16,
    'auxiliary_head.channels': 8,
}


def objects(count: int) -> DetDataSample:
    height, width = SIZE
    boxes = torch.tensor([[8.0, 8.0, 60.0, 50.0]]).repeat(count, 1)
    masks = torch.zeros(count, *SIZE, dtype=torch.uint8)
    masks[:, 8:50, 8:60] = 1
    sample = DetDataSample(metainfo=dict(img_shape=SIZE, pad_shape=SIZE, scale_factor=(1, 1)))
    sample.gt_instances = InstanceData(
        bboxes=boxes.reshape(count, 4),
        labels=torch.zeros(count, dtype=torch.long),
        masks=BitmapMasks(masks.numpy(), height, width),
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
    return sample


def labels(there: bool) -> SegDataSample:
    sample = SegDataSample(metainfo=dict(img_shape=SIZE))
    data = torch.randint(0, 19, (1, *SIZE)) if there else torch.full((1, *SIZE), 255)
    sample.gt_sem_seg = PixelData(data=data)
    return sample


def learn(name: str, rank: int) -> None:
    detects, options = name in DETECTORS, {}
    if not detects:
        wide = 4 if 'r50' in name else 1  # of a bottleneck, over the width within
        options = dict(NARROW, **{'decode_head.in_channels': 64 * wide})
        options['auxiliary_head.in_channels'] = 32 * wide
        if name.startswith('ann'):
            options['decode_head.in_channels'] = [32, 64]
        if wide > 1:
            options['backbone.init_cfg'] = None
        options['data_preprocessor.size'] = SIZE
        options = {f'model.{key}': value for key, value in options.items()}
    torch.manual_seed(0)
    model, _ = build_network(f'configs/{name}.py', options)
    model.init_weights()
    ddp = MMDistributedDataParallel(model, device_ids=None, find_unused_parameters=False)
    wrapper = OptimWrapper(torch.optim.SGD(ddp.parameters(), lr=1e-4))
    torch.manual_seed(rank)
    for _ in range(2):
        batch = dict(
            inputs=[torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8) for _ in range(2)],
            data_samples=[
                objects(2 * (rank == 0)) if detects else labels(rank == 0) for _ in range(2)
            ],
        )
        ddp.train_step(batch, wrapper)
    total = torch.stack([p.detach().double().abs().sum() for p in ddp.parameters()])
    others = [torch.empty_like(total) for _ in range(2)]
    dist.all_gather(others, total)
    assert total.isfinite().all() and torch.equal(*others), name
    print(f'learnt: {name}', flush=True)


def main() -> None:
    dist.init_process_group('gloo', timeout=timedelta(seconds=30))
    for name in [*DETECTORS, *SEGMENTORS, 'nonlocal_r50_512x1024_40k_cityscapes']:
        learn(name, dist.get_rank())
    dist.destroy_process_group()


if __name__ == '__main__':
    main()
