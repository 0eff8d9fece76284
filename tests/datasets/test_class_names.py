"""Classes of data sets, config and checkpoint: one list, or both are shown and nothing runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.datasets import CityscapesDataset

from mmattn.config.load import load_config
from mmattn.datasets.class_names import check_checkpoint_classes, classes_of, difference
from mmattn.engine.network import build_model, build_network
from mmattn.engine.run_config import class_counts
from mmattn.engine.test import test as evaluate
from mmattn.engine.train import train
from mmattn.errors import CheckpointError, DataError, UsageError
from tests.conftest import ROOT, tiny_options
from tests.squares import CLASSES, average_precision, by_heart, config, recite, save, squares

SWAPPED = CLASSES[::-1]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return tmp_path_factory.mktemp('squares')


@pytest.fixture(scope='module')
def truth(root):
    squares(root, 'train', 2)
    made = squares(root, 'val', 6)
    save(root / 'swapped.json', dict(made, categories=made['categories'][::-1]))
    return made


@pytest.fixture(scope='module')
def weights(root, truth, tmp_path_factory):
    """A checkpoint of the squares, which knows its classes."""
    folder = tmp_path_factory.mktemp('weights')
    model, _ = build_network(config(folder / 'own.py', root))

    def made(name='own.pth', **meta):
        torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / name)
        return folder / name

    return made


@pytest.fixture
def found(truth, monkeypatch):
    known = by_heart(truth)
    recite(monkeypatch, known)
    return known


def ap(truth, found):
    return round(average_precision(truth, found), 3)


# ---- data sets of one config ---------------------------------------------------------------------
def test_sets_of_one_config_have_one_order(root, truth, found, tmp_path):
    """What a file with its categories in another order once led to: AP 0.064 instead of 0.837."""
    path = config(tmp_path / 'own.py', root)
    file = {'test_dataloader.dataset.ann_file': 'swapped.json'}
    with pytest.raises(DataError, match='Put the categories of the file in the order') as first:
        evaluate(path, None, work_dir=tmp_path, cfg_options=file)
    assert 'metainfo.classes=' not in str(first.value)
    swapped = file | {'test_dataloader.dataset.metainfo.classes': SWAPPED}
    with pytest.raises(UsageError) as info:
        evaluate(path, None, work_dir=tmp_path, cfg_options=swapped)
    assert "('red', 'green')" in str(info.value) and "('green', 'red')" in str(info.value)
    assert 'same names in another order' in str(info.value)
    command = str(first.value).split('the order of the config: ')[1]  # the remedy of the first
    subprocess.run(command.replace('python', sys.executable, 1), shell=True, check=True)
    metrics = evaluate(path, None, work_dir=tmp_path, cfg_options=file)
    assert metrics['coco/bbox_mAP'] == ap(truth, found) == 0.43


def test_the_remedy_for_one_config(root, truth, found, tmp_path):
    """The same classes in all sets, in one order: with files of that order it is right."""
    for name in 'train', 'val':
        data = json.loads((root / f'{name}.json').read_text())
        save(root / f'{name}_swapped.json', dict(data, categories=data['categories'][::-1]))
    path = config(tmp_path / 'own.py', root, classes=SWAPPED)
    files = {
        'train_dataloader.dataset.ann_file': 'train_swapped.json',
        'val_dataloader.dataset.ann_file': 'val_swapped.json',
        'test_dataloader.dataset.ann_file': 'val_swapped.json',
    }
    known = {k: [(*r[:4], 1 - r[4], r[5]) for r in rows] for k, rows in found.items()}
    with pytest.MonkeyPatch.context() as patch:
        recite(patch, known)  # a network that was trained in this order
        metrics = evaluate(path, None, work_dir=tmp_path, cfg_options=files)
    assert metrics['coco/bbox_mAP'] == ap(truth, found)


@pytest.mark.parametrize('part', ['train', 'val'])
def test_a_training_with_two_orders_is_refused(root, truth, tmp_path, part):
    path = config(tmp_path / 'own.py', root)
    swapped = {f'{part}_dataloader.dataset.metainfo.classes': SWAPPED}
    with pytest.raises(UsageError, match='the same names in another order'):
        train(path, work_dir=tmp_path / 'work', cfg_options=swapped)
    assert not (tmp_path / 'work').exists()


def test_sets_joined_by_a_wrapper_are_compared_too(root, truth, tmp_path):
    wrapped = """
_two = [dict(_common, ann_file='val.json', test_mode=True) for _ in range(2)]
_two[1]['metainfo'] = dict(classes=('green', 'red'))
test_dataloader['dataset'] = dict(_delete_=True, type='ConcatDataset', datasets=_two)
"""
    path = config(tmp_path / 'own.py', root, wrapped)
    with pytest.raises(UsageError, match='test_dataloader: the same names in another order'):
        evaluate(path, None, work_dir=tmp_path)


def test_other_names_are_refused_and_other_spellings_pass():
    assert difference(('Traffic light', 'bed '), 'a', ('traffic_light', 'bed'), 'b') is None
    assert 'other names: a has' in difference(('cat', 'dog'), 'a', ('cat', 'cow'), 'b')
    assert difference(('+', '-'), 'a', ('-', '+'), 'b').startswith('the same names in another')
    many = tuple(f'c{i}' for i in range(80))
    moved = (*many[:40], many[41], many[40], *many[42:])
    assert difference(many, 'a', moved, 'b').endswith("class 40 is 'c40' in a, 'c41' in b")


# ---- the checkpoint ------------------------------------------------------------------------------
def test_a_checkpoint_of_another_order_is_refused(root, truth, weights, found, tmp_path):
    path = config(tmp_path / 'own.py', root)
    good = weights(dataset_meta=dict(classes=CLASSES))
    assert evaluate(path, good, work_dir=tmp_path)['coco/bbox_mAP'] == ap(truth, found)
    bad = weights('bad.pth', dataset_meta=dict(classes=[*SWAPPED]))
    for job in (
        lambda: evaluate(path, bad, work_dir=tmp_path),
        lambda: build_model(path, bad, device='cpu'),  # of infer, export, view, publish, load_model
    ):
        with pytest.raises(CheckpointError) as info:
            job()
        for said in "('red', 'green')", "('green', 'red')", 'bad.pth', 'put the categories of':
            assert said in str(info.value)


def test_names_of_its_own_are_no_other_order(root, truth, weights, found, tmp_path, monkeypatch):
    """Names in another language are shown; a name that stands at another place is refused."""
    said = []
    monkeypatch.setattr('mmattn.datasets.class_names.warn', said.append)
    path, key = config(tmp_path / 'own.py', root), 'test_dataloader.dataset.metainfo.classes'
    good = weights('named.pth', dataset_meta=dict(classes=CLASSES))
    _, cfg = build_model(path, good, {key: ('红色', 'Grün')}, device='cpu')
    assert cfg.test_dataloader.dataset.metainfo.classes == ('红色', 'Grün')
    assert said == [
        "the classes are renamed: the checkpoint has ('red', 'green'), CocoDataset of the config "
        "('红色', 'Grün')"
    ]
    for other in ('green', 'blue'), ('blue', 'red'), SWAPPED:
        with pytest.raises((UsageError, CheckpointError), match='other names|another order'):
            build_model(path, good, {key: other}, device='cpu')
    with pytest.raises(UsageError, match='other names'):  # where it would be scored
        evaluate(path, good, work_dir=tmp_path, cfg_options={key: ('红色', 'Grün')})


@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=dict(classes=['red', 'Green'])),
        dict(dataset_meta=dict(CLASSES=('red', 'green'))),
        dict(CLASSES=('red', 'green')),
        dict(dataset_meta=dict(classes=None)),
        dict(dataset_meta=None),
        dict(),
    ],
)
def test_checkpoints_that_agree_or_do_not_say(root, truth, weights, tmp_path, meta):
    build_model(config(tmp_path / 'own.py', root), weights(**meta), device='cpu')


@pytest.mark.parametrize('meta', [dict(CLASSES=SWAPPED), dict(dataset_meta=dict(CLASSES=SWAPPED))])
def test_older_checkpoints_are_read_too(root, truth, weights, tmp_path, meta):
    with pytest.raises(CheckpointError, match='another order'):
        build_model(config(tmp_path / 'own.py', root), weights(**meta), device='cpu')


def test_fine_tuning_on_other_classes_is_no_business_of_this(root, truth, weights, tmp_path):
    path = config(tmp_path / 'own.py', root)
    other = weights(dataset_meta=dict(classes=('cat', 'dog')))
    work = train(path, work_dir=tmp_path / 'work', init_from=other, validate=False)
    content = torch.load(work / 'iter_2.pth', weights_only=True)
    assert tuple(content['meta']['dataset_meta']['classes']) == CLASSES
    with pytest.raises(CheckpointError, match=r"other names: .*\('cat', 'dog'\)") as info:
        evaluate(path, other, work_dir=tmp_path)
    assert '--init-from' in str(info.value)


def test_a_run_is_not_resumed_with_its_classes_swapped(root, truth, tmp_path):
    for name in 'train', 'val':
        data = json.loads((root / f'{name}.json').read_text())
        save(root / f'{name}_swapped.json', dict(data, categories=data['categories'][::-1]))
    path, work = config(tmp_path / 'own.py', root), tmp_path / 'work'
    train(path, work_dir=work, validate=False)
    longer = {'train_cfg.max_iters': 3}
    swapped = config(tmp_path / 'swapped.py', root, classes=SWAPPED)
    with pytest.raises(UsageError, match='config differs from the checkpoint: .*classes'):
        train(swapped, work_dir=work, resume='latest', cfg_options=longer, validate=False)
    content = torch.load(work / 'iter_2.pth', weights_only=True)
    content['meta']['dataset_meta']['classes'] = SWAPPED  # as if the class of the data had changed
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='the same names in another order'):
        train(path, work_dir=work, resume=str(tmp_path / 'other.pth'), validate=False)


def test_heads_without_classes_and_prompts_are_not_compared():
    """A network of region proposals knows no class; one that reads names takes any."""
    files = 'rpn/rpn_r50_fpn_1x_coco.py', 'glip/glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365.py'
    meta = dict(dataset_meta=dict(classes=tuple(f'c{i}' for i in range(80))))
    init_default_scope('mmdet')
    home = Path(mmdet.__file__).parent / '.mim' / 'configs'
    for name in files:
        cfg = load_config(home / name)
        check_checkpoint_classes(cfg, dict(class_counts(cfg.model, 'model')), meta, 'x.pth')


def test_names_of_metas():
    assert classes_of(dict(classes='one')) == ('one',)
    assert classes_of([dict(classes=['a']), dict(classes=('a',))]) == ('a',)
    assert classes_of([dict(classes=['a']), dict(classes=['b'])]) is None
    assert classes_of(None) is classes_of(dict(classes=[1])) is None


# ---- segmentation --------------------------------------------------------------------------------
def test_a_segmentor_whose_classes_are_renamed_in_another_order(street, tmp_path):
    """Names of the config, numbers of the label maps: the remedy gives the score of before."""
    base = ROOT / 'configs' / 'fcn_r18_street.py'
    small = tiny_options(street)
    model, _ = build_network(base, small)
    names = CityscapesDataset.METAINFO['classes']
    path = tmp_path / 'own.pth'
    model.init_weights()
    torch.save(
        dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=names))), path
    )
    before = evaluate(base, path, work_dir=tmp_path, cfg_options=small)
    moved = (names[1], names[0], *names[2:])
    sets = {
        f'{n}_dataloader.dataset.metainfo': dict(classes=moved) for n in ('train', 'val', 'test')
    }
    with pytest.raises(CheckpointError) as info:
        evaluate(base, path, work_dir=tmp_path, cfg_options=small | sets)
    text = str(info.value)
    assert f'class 0 is {names[0]!r} in the checkpoint, {moved[0]!r} in' in text
    assert re.search('If the numbers in the label maps are those of the checkpoint', text)
    swapped = {k: dict(classes=names) for k in sets}
    after = evaluate(base, path, work_dir=tmp_path, cfg_options=small | swapped)
    assert after['mIoU'] == before['mIoU'] and after['IoU.road'] == before['IoU.road']
