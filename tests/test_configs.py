"""Configs train and test one step of their network on tiny data; most of ResNet-50 and -101 narrower.

Configs that differ only in ResNet depth and schedule length train once.
"""

import json
import re

import numpy as np
import pytest
from mmdet import datasets
from PIL import Image

from mmattn.checkpoint.read import read_checkpoint
from mmattn.config.index import list_models
from mmattn.config.load import load_config
from mmattn.config.names import config_text
from mmattn.engine.test import test as evaluate
from mmattn.engine.train import train
from tests.conftest import ROOT, tiny_options

CONFIGS = [ROOT / 'configs' / f'{name}.py' for name in list_models()]
DETECTORS = [p for p in CONFIGS if p.stem.startswith(('faster_rcnn', 'mask_rcnn', 'retinanet'))]
SEGMENTORS = [p for p in CONFIGS if p not in DETECTORS]
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
WHOLE = ('ccnet_r101_cityscapes', 'mask_rcnn_r50_dcnv2_coco')  # in all their width
DEPTH_AND_SCHEDULE = {
    'model.backbone.depth', 'model.backbone.init_cfg.checkpoint', 'train_cfg.max_iters',
    'train_cfg.val_interval', 'param_scheduler.0.end', 'default_hooks.checkpoint.interval',
}  # fmt: skip
STEP = {
    'train_cfg.max_iters': 1,
    'train_cfg.val_interval': 1,
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.checkpoint.save_optimizer': False,  # it fills the disk, and takes time
}


def recipes(paths) -> dict:
    """The config that is trained -> those that differ from it in depth and schedule."""
    groups = {}
    for path in sorted(paths, key=lambda p: (p.stem not in WHOLE, 'r101' in p.stem, p)):
        name = re.sub(r'_\d+k(?=_)', '', path.stem).replace('_r101_', '_r50_')
        groups.setdefault(name, []).append(path)
    return {first: rest for first, *rest in groups.values()}


def step_options(path, root) -> dict:
    options = tiny_options(root) | STEP
    size = (64, 64) if 'unet' in path.stem else (65, 65)  # a U-Net halves it three times
    options['model.data_preprocessor.size'] = size
    for name, value in {'crop_size': size}.items():
        options[f'train_dataloader.dataset.pipeline.3.{name}'] = value
    options['train_dataloader.dataset.pipeline.2.scale'] = (128, 64)
    cfg = load_config(path)
    for name in LOADERS[1:]:
        if cfg[name].dataset.pipeline[1].type == 'Resize':
            options[f'{name}.dataset.pipeline.1.scale'] = (128, 64)
    if not is_small(path):
        options['model.backbone.init_cfg'] = None
        options['model.test_cfg.crop_size'] = size
        options['model.test_cfg.stride'] = (43, 43)
        if path.stem not in WHOLE:
            options |= narrow(cfg.model)
    return options


def is_small(path) -> bool:
    """Whether a config is trained as it is."""
    return any(part in path.stem for part in ('r18', 'lite0', 'unet'))


def narrow(model) -> dict:
    """A segmentor at an eighth of the width; a detector's backbone at half, which groups of 64 channels need."""
    if 'decode_head' not in model:
        options = {
            'model.backbone.stem_channels': 32,
            'model.backbone.base_channels': 32,
            'model.neck.in_channels': [c // 2 for c in model.neck.in_channels],
            'model.neck.out_channels': 32,
        }
        dense = 'rpn_head' if 'roi_head' in model else 'bbox_head'
        options |= {f'model.{dense}.{key}': 32 for key in ('in_channels', 'feat_channels')}
        if 'roi_head' in model:
            options['model.roi_head.bbox_roi_extractor.out_channels'] = 32
            options['model.roi_head.bbox_head.in_channels'] = 32
            options['model.roi_head.bbox_head.fc_out_channels'] = 64
        if 'mask_head' in model.get('roi_head', {}):
            options['model.roi_head.mask_roi_extractor.out_channels'] = 32
            for key in 'in_channels', 'conv_out_channels':
                options[f'model.roi_head.mask_head.{key}'] = 32
        return options
    options = {'model.backbone.stem_channels': 8, 'model.backbone.base_channels': 8}
    for key, head in decode_heads(model).items():
        channels = head.in_channels
        several = isinstance(channels, list)
        options[f'{key}.in_channels'] = [c // 8 for c in channels] if several else channels // 8
        options[f'{key}.channels'] = head.channels // 8
        for own in 'isa_channels', 'ema_channels', 'ocr_channels':
            if own in head:
                options[f'{key}.{own}'] = head[own] // 8
        if 'mask_size' in head:
            options[f'{key}.mask_size'] = (9, 9)
    return options


def decode_heads(model) -> dict:
    """Path -> config of each head of a segmentor; a cascade has several."""
    head, auxiliary = model.decode_head, model.get('auxiliary_head')
    heads = {'model.decode_head': head}
    if isinstance(head, list):
        heads = {f'model.decode_head.{i}': part for i, part in enumerate(head)}
    return heads | ({'model.auxiliary_head': auxiliary} if auxiliary else {})


@pytest.mark.parametrize('path', recipes(SEGMENTORS), ids=lambda p: p.stem)
def test_a_segmentor_trains_and_tests_a_step(path, street, tmp_path, monkeypatch):
    options = step_options(path, street)
    if path.stem.endswith('camvid'):
        options = as_camvid(options, tmp_path / 'data')
    if path.stem.endswith('ade20k'):
        options = as_ade20k(options, tmp_path / 'data')
    if path.stem.endswith('dsb2018'):
        options = as_dsb2018(options, tmp_path / 'data')
    metrics = train_and_test(path, options, tmp_path, monkeypatch)
    assert 0 <= metrics['mIoU'] <= 100


def train_and_test(path, options, folder, monkeypatch, **train_options) -> dict:
    """Metrics of a run; only small ones rehearse, validate, report their blocks and draw curves."""
    small = is_small(path)
    if not small:  # they are made of the parts of small ones, and blocks in all places have tests
        options = {**options, 'custom_hooks': []}
        train_options['validate'] = False
        monkeypatch.setattr('mmattn.engine.train.report_blocks', lambda *args, **options: None)
    run = dict(work_dir=folder, cfg_options=options, rehearsal=small)
    work_dir = train(path, **run, **train_options)
    assert not small or (work_dir / 'curves.png').stat().st_size > 10_000
    return evaluate(path, work_dir / 'iter_1.pth', **run)


@pytest.mark.parametrize('path', recipes(DETECTORS), ids=lambda p: p.stem)
def test_a_detector_trains_and_tests_a_step(path, street, tmp_path, monkeypatch):
    options = detector_options(path, street, tmp_path)
    metrics = train_and_test(path, options, tmp_path / 'run', monkeypatch, validate=False)
    assert metrics['coco/bbox_mAP'] >= 0
    assert ('coco/segm_mAP' in metrics) == path.stem.startswith('mask_rcnn')


@pytest.mark.parametrize(
    'name',
    ['faster_rcnn_r18_bccd', 'retinanet_r18_bccd', 'mask_rcnn_r18_dsb2018', 'ccnet_r18_street'],
)
def test_gated_outputs_learn_and_are_tested(name, street, tmp_path):
    """The gate of the placement starts at psi = 0, which one step moves if its output is read."""
    path = ROOT / 'configs' / f'{name}.py'
    if path in SEGMENTORS:
        options = step_options(path, street)
    else:
        options = detector_options(path, street, tmp_path)
    run = dict(work_dir=tmp_path / 'run', cfg_options=options, rehearsal=False)
    work_dir = train(path, **run, attention='gate', validate=False)
    weights = read_checkpoint(work_dir / 'iter_1.pth')['state_dict']
    gates = {k: v for k, v in weights.items() if k.startswith('backbone.gates.')}
    assert {k.split('.')[2] for k in gates} == {'3'}
    assert gates['backbone.gates.3.psi.weight'].any()
    evaluate(path, work_dir / 'iter_1.pth', **run)


def detector_options(path, street, folder) -> dict:
    """One small step on the scenes of `street`, with as many categories as the config's data has."""
    cfg = load_config(path)
    data = cfg.train_dataloader.dataset
    classes = (
        data.get('metainfo', {}).get('classes') or getattr(datasets, data.type).METAINFO['classes']
    )
    for split in 'train', 'val':
        coco = json.loads(
            (street / f'annotations/instancesonly_filtered_gtFine_{split}.json').read_text()
        )
        coco['categories'] = [dict(id=k, name=name) for k, name in enumerate(classes, 1)]
        for annotation in coco['annotations']:
            annotation['category_id'] = annotation['category_id'] % len(classes) + 1
        (folder / f'{split}.json').write_text(json.dumps(coco))
    options = tiny_options(street) | STEP
    size = (192, 96) if 'dcn' in path.stem else (128, 64)  # DCN wants 3x3 in the last stage
    options['train_dataloader.dataset.pipeline.2.scale'] = size
    for name in LOADERS:
        split = 'train' if name.startswith('train') else 'val'
        options[f'{name}.dataset.ann_file'] = str(folder / f'{split}.json')
        options[f'{name}.dataset.data_prefix.img'] = f'leftImg8bit/{split}/'
        if split == 'val':
            options[f'{name}.dataset.pipeline.1.scale'] = size
    if not is_small(path):
        options['model.backbone.init_cfg'] = None
        if path.stem not in WHOLE:
            options |= narrow(cfg.model)
    if 'roi_head' in cfg.model:  # few proposals, as most of the time goes into them
        options['model.train_cfg.rpn_proposal.max_per_img'] = 20
        options['model.train_cfg.rcnn.sampler.num'] = 16
        options['model.test_cfg.rpn.max_per_img'] = 20
    return options


def draw(root, splits, labels) -> None:
    """Two images of noise a split, and their label maps."""
    rng = np.random.default_rng(0)
    for split, (images, maps) in splits.items():
        for folder, low, high, mode, suffix in (
            (images, 0, 256, (90, 120, 3), 'jpg'),
            (maps, *labels, (90, 120), 'png'),
        ):
            (root / folder).mkdir(parents=True)
            for stem in f'{split}_a', f'{split}_b':
                values = rng.integers(low, high, mode, np.uint8)
                Image.fromarray(values).save(root / folder / f'{stem}.{suffix}')


def as_camvid(options, root) -> dict:
    """The tiny options for the two-part CamVid config, on noise."""
    draw(root, {s: (f'images/{s}', f'labels/{s}') for s in ('train', 'val', 'test')}, (0, 11))
    changed = {}
    for key, value in options.items():
        if key.startswith('train_dataloader.dataset.'):
            for part in 0, 1:
                changed[key.replace('.dataset.', f'.dataset.datasets.{part}.')] = value
        else:
            changed[key] = value
    return {k: str(root) if k.endswith('data_root') else v for k, v in changed.items()}


def as_ade20k(options, root) -> dict:
    """The tiny options on noise as ADE20K has it, where 0 is no class."""
    folders = {s: (f'images/{s}', f'annotations/{s}') for s in ('training', 'validation')}
    draw(root, folders, (0, 151))
    return {k: str(root) if k.endswith('data_root') else v for k, v in options.items()}


def as_dsb2018(options, root) -> dict:
    """The tiny options on noise, with the names of each split in a file."""
    rng = np.random.default_rng(0)
    for folder in 'images', 'labels', 'annotations':
        (root / folder).mkdir(parents=True)
    for split in 'train', 'val':
        (root / 'annotations' / f'{split}.txt').write_text(f'{split}_a\n{split}_b\n')
        for stem in f'{split}_a', f'{split}_b':
            for folder, high, shape in ('images', 256, (64, 96, 3)), ('labels', 2, (64, 96)):
                values = rng.integers(0, high, shape, np.uint8)
                Image.fromarray(values).save(root / folder / f'{stem}.png')
    return {k: str(root) if k.endswith('data_root') else v for k, v in options.items()}


def settings(value, name='') -> dict:
    """Dotted name -> value."""
    if not value or not isinstance(value, dict | list | tuple):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = {}
    for key, part in items:
        found |= settings(part, f'{name}.{key}' if name else key)
    return found


def test_what_is_not_trained_differs_in_depth_and_schedule_alone():
    trained = recipes(CONFIGS)
    assert {p for rest in trained.values() for p in rest} | set(trained) == set(CONFIGS)
    assert any('r101' in p.stem for p in trained)
    for path, rest in trained.items():
        first = settings(load_config(path).to_dict())
        for other in rest:
            second = settings(load_config(other).to_dict())
            assert first.keys() == second.keys(), other
            assert {k for k in first if first[k] != second[k]} <= DEPTH_AND_SCHEDULE, other


def test_configs_are_one_step_from_their_parents():
    import ast

    for path in CONFIGS:
        tree = ast.parse(config_text(path) or path.read_text())
        assert ast.get_docstring(tree), path
        assert path.stem.isidentifier()
    for path in (ROOT / 'configs' / '_base_').rglob('*.py'):
        assert '_base_' not in {
            t.id
            for n in ast.parse(path.read_text()).body
            if isinstance(n, ast.Assign)
            for t in n.targets
        }


def test_segmentors_differ_in_the_head_alone():
    """What their figures compare is the attention, not the recipe."""
    own = ('type', 'recurrence', 'pam_channels', 'project_channels', 'mode', 'ratio')
    own += ('in_channels', 'in_index')  # ANN fuses two stages
    own += ('isa_channels', 'down_factor', 'ema_channels', 'num_bases', 'num_stages')
    own += ('mask_size', 'shrink_factor', 'reduction')
    for ending in 'r18_street', 'r18_camvid', 'lite0_camvid', 'r50_cityscapes', 'r101_cityscapes':
        models = ['ccnet', 'ann', 'danet', 'nonlocal', 'gcnet']
        models += ['fcn'] * ending.startswith(('r18', 'lite0'))
        if ending == 'r18_street':  # OCRNet is a cascade
            models += ['isanet', 'emanet', 'psanet', 'dnlnet']
        types, rest = set(), []
        for model in models:
            cfg = load_config(ROOT / f'configs/{model}_{ending}.py').to_dict()
            head = cfg['model']['decode_head']
            types.add(head['type'])
            cfg['model']['decode_head'] = {k: v for k, v in head.items() if k not in own}
            rest.append(cfg)
        assert len(types) == len(models) and all(cfg == rest[0] for cfg in rest)


@pytest.mark.parametrize('data', ['street', 'dsb2018'])
def test_unets_differ_in_the_gates_alone(data):
    gated, plain = (
        load_config(ROOT / f'configs/{name}_{data}.py').to_dict()
        for name in ('attention_unet', 'unet')
    )
    assert gated['model']['backbone'].pop('type') == 'mmattn.AttentionUNet'
    assert gated['model']['backbone'].pop('gated_stages') == (2, 3)
    assert plain['model']['backbone'].pop('type') == 'UNet'
    assert gated == plain


def test_no_config_pairs_class_weight_with_avg_non_ignore():
    """onedl-mmsegmentation 1.4.2 raises an IndexError for the pair."""
    for path in SEGMENTORS:
        for head in decode_heads(load_config(path).model).values():
            assert not (
                head.loss_decode.get('class_weight') and head.loss_decode.get('avg_non_ignore')
            )


def test_every_config_has_its_row_in_the_metafile():
    import yaml

    content = yaml.safe_load((ROOT / 'configs' / 'metafile.yml').read_text())
    rows = {model['Name']: model for model in content['Models']}
    assert len(rows) == len(content['Models'])
    assert set(rows) == {p.stem for p in CONFIGS if not p.stem.endswith('_street')}
    collections = {entry['Name'] for entry in content['Collections']}
    for name, row in rows.items():
        assert row['Config'] == f'configs/{name}.py' and row['In Collection'] in collections
        assert bool(row['Results']) == bool(row.get('Commands'))  # measured, and by what
        assert all(entry['Source'] for entry in row['Published'])
