"""What a refusal of data advises is right: it is applied to what was refused, and the check passes."""

import json
import os
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from mmattn.cli.common import run
from mmattn.datasets.image_limits import MEGAPIXELS_VARIABLE
from mmattn.datasets.validation import check_data
from mmattn.errors import DataError, UsageError
from tests.conftest import ROOT, tiny_options
from tests.datasets.small_sets import box_set, label_set, scene, turn, write_labels
from tests.datasets.test_readers import panoptic
from tests.test_tools import flags, tool

TRAIN = 'train_dataloader'


def refused(leaf):
    with pytest.raises((DataError, UsageError)) as caught:
        check_data(leaf, TRAIN)
    return str(caught.value)


def command_in(text):
    """Run the command that a message ends with."""
    line = text[text.index('python -c') :].replace('python', shlex.quote(sys.executable), 1)
    subprocess.run(['bash', '-c', line], check=True, timeout=60)


def names_in(path, names):
    path.write_text('\n'.join(names) + '\n')


# ---- label maps: each returns the refused config, what is advised, and the config that is advised --
def other_label_suffix(root):
    leaf = label_set(root)
    return leaf | dict(seg_map_suffix='_mask.png'), "Set seg_map_suffix='.png'.", leaf


def other_image_suffix(root):
    leaf = label_set(root)
    names_in(root / 'list.txt', '0123')
    listed = leaf | dict(ann_file='list.txt')
    return listed | dict(img_suffix='.jpg'), "Set img_suffix='.png'.", listed


def no_image_of_the_suffix(root):
    leaf = label_set(root)
    return leaf | dict(img_suffix='.jpg'), "There are 4 *.png: set img_suffix='.png'.", leaf


def names_with_suffix(root):
    leaf = label_set(root)
    names_in(root / 'with.txt', [f'{n}.png' for n in range(4)])
    names_in(root / 'without.txt', '0123')
    advice = f"{root}/with.txt lists them with '.png': write the names without suffix."
    return leaf | dict(ann_file='with.txt'), advice, leaf | dict(ann_file='without.txt')


def empty_line(root):
    leaf = label_set(root)
    (root / 'holed.txt').write_text('0\n1\n\n2\n')
    names_in(root / 'whole.txt', '012')
    advice = f'Line 3 of {root}/holed.txt is empty: remove it.'
    return leaf | dict(ann_file='holed.txt'), advice, leaf | dict(ann_file='whole.txt')


def lost_image(root):
    leaf = label_set(root)
    names_in(root / 'list.txt', '0129')
    names_in(root / 'rest.txt', '012')
    advice = f'Get them, or take their names out of {root}/list.txt.'
    return leaf | dict(ann_file='list.txt'), advice, leaf | dict(ann_file='rest.txt')


def lost_label_map(root):
    leaf = label_set(root)
    (root / 'mask/2.png').unlink()
    names_in(root / 'rest.txt', '013')
    advice = 'name the others in a file, one a line without suffix, and set ann_file to it.'
    return leaf, advice, leaf | dict(ann_file='rest.txt')


def several_suffixes(root):
    leaf = label_set(root)
    Image.open(root / 'img/3.png').save(root / 'img/3.jpg')
    (root / 'img/3.png').unlink()
    advice = (
        "Write dict(type='ConcatDataset', datasets=[dict(..., img_suffix='.png'), "
        "dict(..., img_suffix='.jpg')])."
    )
    parts = [leaf | dict(img_suffix=suffix) for suffix in ('.png', '.jpg')]
    two = dict(type='ConcatDataset', datasets=parts)
    return leaf | dict(img_suffix=('.png', '.jpg')), advice, two


def palette_by_opencv(root):
    leaf = label_set(root)
    steps = [leaf['pipeline'][0], dict(type='LoadAnnotations', imdecode_backend='cv2')]
    advice = "Set imdecode_backend='pillow' in LoadAnnotations of every pipeline."
    right = [leaf['pipeline'][0], dict(type='LoadAnnotations', imdecode_backend='pillow')]
    return leaf | dict(pipeline=steps), advice, leaf | dict(pipeline=right)


def one_bit_by_opencv(root):
    leaf = label_set(root, classes=2, kind='1 bit')
    steps = [leaf['pipeline'][0], dict(type='LoadAnnotations', imdecode_backend='cv2')]
    advice = "Set imdecode_backend='pillow' in LoadAnnotations of every pipeline."
    return leaf | dict(pipeline=steps), advice, leaf


def turned_by_exif(root):
    leaf = label_set(root)
    for path in (root / 'img').iterdir():
        turn(path, 3)
    steps = [dict(type='LoadImageFromFile', color_type='color_ignore_orientation')]
    advice = "Set color_type='color_ignore_orientation' in LoadImageFromFile of every pipeline."
    return leaf, advice, leaf | dict(pipeline=[*steps, leaf['pipeline'][1]])


def upright_by_exif(root):
    leaf, _, other = turned_by_exif(root)
    for path in (root / 'img').iterdir():
        turn(path, 6)
    return leaf, "Set color_type='color_ignore_orientation' in LoadImageFromFile of every", other


def greater_labels(root):
    leaf = label_set(root, kind='grey', change=lambda labels: labels + 2)
    fixed = label_set(root / 'fixed')
    return leaf, 'Write the number of its class into each pixel, 0..2, or 255 where it has', fixed


def counted_from_one(root):
    leaf = label_set(root, change=lambda labels: labels + 1)
    advice = 'If 0 means that a pixel has no class, set reduce_zero_label=True in every data set;'
    return leaf, advice, leaf | dict(reduce_zero_label=True)


def colours(root):
    leaf = label_set(root, kind='colours')
    advice = 'Write the number of its class into each pixel, 0..2, as 8 bits and one channel, or'
    return leaf, advice, label_set(root / 'fixed', kind='grey')


def white_masks(root):
    leaf = label_set(root, classes=2, kind='grey', change=lambda labels: labels * 255)
    return leaf, 'Write 1 instead of 255 into each pixel.', label_set(root / 'fixed', classes=2)


def one_pixel(root):
    leaf = label_set(root)
    Image.new('RGB', (32, 1)).save(root / 'img/1.png')
    Image.new('L', (32, 1)).save(root / 'mask/1.png')
    names_in(root / 'rest.txt', '023')
    return leaf, 'Leave it and its image out.', leaf | dict(ann_file='rest.txt')


def classes_as_text(root):
    leaf = label_set(root, classes=2)
    advice = "Write classes=('ground',), with a comma."
    two = dict(classes=('ground', 'disc'))
    return leaf | dict(metainfo=dict(classes=('ground'))), advice, leaf | dict(metainfo=two)


LABELS = [
    other_label_suffix, other_image_suffix, no_image_of_the_suffix, names_with_suffix, empty_line,
    lost_image, lost_label_map, several_suffixes, palette_by_opencv, one_bit_by_opencv,
    turned_by_exif, upright_by_exif, greater_labels, counted_from_one, colours, white_masks,
    one_pixel, classes_as_text,
]  # fmt: skip


@pytest.mark.parametrize('case', LABELS, ids=lambda case: case.__name__)
def test_label_maps(case, tmp_path):
    init_default_scope('mmseg')
    wrong, advice, right = case(tmp_path)
    assert advice in refused(wrong)
    check_data(right, TRAIN)
    dataset = DATASETS.build(right)
    for number in range(len(dataset)):
        sample = dataset[number]
        labels = sample['gt_seg_map']
        assert labels.shape == sample['img'].shape[:2] and set(np.unique(labels)) <= {0, 1, 2, 255}
        truth = [scene(k, len(dataset.metainfo['classes']))[1] for k in range(4)]
        assert any(np.array_equal(labels, known) for known in truth)


def test_upper_case_suffixes_are_said_before_a_training(tmp_path, monkeypatch):
    init_default_scope('mmseg')
    said = []
    monkeypatch.setattr('mmattn.datasets.validation.warn', said.append)
    leaf = label_set(tmp_path)
    for number in 0, 2:
        (tmp_path / f'img/{number}.png').rename(tmp_path / f'img/{number}.PNG')
    for _ in range(2):  # from the verdict that was kept, too
        check_data(leaf, TRAIN)
    assert len(said) == 2 and said[0] == said[1] and '2 label maps belong to no image' in said[0]
    assert "2 have an image *.PNG, which img_suffix='.png' leaves out." in said[0]
    assert "Rename those, or add a data set with img_suffix='.PNG'." in said[0]
    other = leaf | dict(img_suffix='.PNG')
    both = DATASETS.build(dict(type='ConcatDataset', datasets=[leaf, other]))
    assert len(both) == 4
    for number in 0, 2:
        (tmp_path / f'img/{number}.PNG').rename(tmp_path / f'img/{number}.png')
    check_data(leaf, TRAIN)
    assert len(said) == 2


@pytest.mark.parametrize('kind, shift', [('zero and one', 1), ('white', 255), ('reduced', 1)])
def test_a_network_of_one_class_becomes_one_of_two(kind, shift, tmp_path, capfd):
    """Trained as advised: each class has a score of its own."""
    change = (lambda labels: labels * 255) if kind == 'white' else None
    leaf = label_set(tmp_path / 'set', classes=2, kind='grey', change=change)
    init_default_scope('mmseg')
    one = leaf | dict(metainfo=dict(classes=('disc',)))
    one |= dict(reduce_zero_label=True) if kind == 'reduced' else {}
    text = refused(one)
    names = re.search(r'metainfo=dict\(classes=(\(.*?\))\)', text)[1]
    assert names == "('background', 'disc')"
    assert ('leave reduce_zero_label out' in text) == (kind == 'reduced')
    write = 'Write 1 where that class is and 0 elsewhere into the label maps.'
    assert (write in text) == (kind == 'white')
    head = text[text.index('num_classes=2') :].split(' in each head')[0]
    assert head == 'num_classes=2, out_channels=1, loss_decode=dict(use_sigmoid=True)'
    if kind != 'white':
        check_data(leaf | dict(metainfo=dict(classes=('background', 'disc'))), TRAIN)
        return
    for number in range(4):
        write_labels(tmp_path / f'set/mask/{number}.png', scene(number, 2)[1], 'grey')
    data = dict(leaf, _delete_=True, metainfo=dict(classes=('background', 'disc')))
    config = tmp_path / 'two.py'
    data['pipeline'] = [*leaf['pipeline'], dict(type='PackSegInputs')]
    loaders = '\n'.join(f'{p}_dataloader = dict(dataset={data})' for p in ('train', 'val', 'test'))
    config.write_text(
        f'_base_ = {str(ROOT / "configs/fcn_r18_street.py")!r}\n{loaders}\n'
        f'model = dict(data_preprocessor=dict(size=(24, 32)), decode_head=dict({head}), '
        f'auxiliary_head=dict({head}))\n'
    )
    options = {k: v for k, v in tiny_options('').items() if not k.endswith('data_root')}
    options |= {'train_cfg.max_iters': 2}
    assert tool('train')([str(config), '--work-dir', str(tmp_path / 'w'), *flags(options)]) == 0
    logged = capfd.readouterr()
    assert re.search(r'IoU.background: +\d', logged.out + logged.err)
    assert re.search(r'IoU.disc: +(\d|nan)', logged.out + logged.err)


# ---- boxes ---------------------------------------------------------------------------------------
def edit(leaf, change):
    path = f'{leaf["data_root"]}/{leaf["ann_file"]}'
    with open(path) as file:
        content = json.load(file)
    change(content)
    with open(path, 'w') as file:
        json.dump(content, file)


def backslashes(root):
    def change(content):
        for image in content['images']:
            image['file_name'] = 'sub\\' + image['file_name']

    leaf = box_set(root, change=change)
    (root / 'img/sub').mkdir()
    for number in 1, 2, 3:
        (root / f'img/{number}.png').rename(root / f'img/sub/{number}.png')
    return leaf, f'has backslashes, but {root}/img/sub/1.png is there', command_in


def quoted(root):
    def change(content):
        for image in content['images']:
            image['file_name'] = 'my%20' + image['file_name']

    leaf = box_set(root, change=change)
    for number in 1, 2, 3:
        (root / f'img/{number}.png').rename(root / f'img/my {number}.png')
    return leaf, f'is quoted as in an address, but {root}/img/my 1.png is there', command_in


def folder_twice(root):
    def change(content):
        for image in content['images']:
            image['file_name'] = 'img/' + image['file_name']

    leaf = box_set(root, change=change)
    advice = 'The file names have the last folder of data_prefix.img already: leave it out there.'
    return leaf, advice, lambda _: leaf.update(data_prefix=dict(img=''))


def order(root):
    leaf = box_set(root, change=lambda content: content['categories'].reverse())
    return leaf, 'Put the categories of the file in the order of the config: python -c', command_in


def orientation(root):
    leaf = box_set(root, suffix='.jpg')
    for path in (root / 'img').iterdir():
        turn(path, 6)

    def mend(_):
        leaf['pipeline'][0]['color_type'] = 'color_ignore_orientation'

    advice = "Set color_type='color_ignore_orientation' in LoadImageFromFile of every pipeline."
    return leaf, advice, mend


def crowds(root):
    def change(content):
        for annotation in content['annotations']:
            annotation['iscrowd'] = 1

    def mend(_):
        edit(leaf, lambda c: [a.update(iscrowd=0) for a in c['annotations']])

    leaf = box_set(root, change=change)
    return leaf, 'Write iscrowd=0 for single objects.', mend


def ignored(root):
    def change(content):
        for annotation in content['annotations']:
            annotation['ignore'] = 1

    leaf = box_set(root, change=change)

    def mend(_):
        edit(leaf, lambda c: [a.pop('ignore') for a in c['annotations']])

    return leaf, "Remove 'ignore' from the objects to learn from.", mend


def too_small(root):
    leaf = box_set(root) | dict(filter_cfg=dict(min_size=32))
    advice = 'Lower filter_cfg.min_size=32, the least side of an image.'
    return leaf, advice, lambda _: leaf['filter_cfg'].update(min_size=24)


def no_index(root):
    leaf = box_set(root) | dict(indices=0)
    return leaf, 'Leave indices=0 out.', lambda _: leaf.pop('indices')


def of_another_class(root):
    def change(content):
        for annotation in content['annotations']:
            annotation['category_id'] = 3
        content['categories'].append(dict(id=3, name='blue'))

    leaf = box_set(root, change=change)

    def mend(_):
        leaf['metainfo'] = dict(classes=('red', 'green', 'blue'))

    return leaf, 'Name the categories in metainfo.classes.', mend


def run_length(root):
    def change(content):
        content['annotations'][0]['segmentation'] = dict(size=[24, 32], counts=[0, 50, 718])

    leaf = box_set(root, change=change)
    leaf['pipeline'][1] |= dict(with_mask=True, poly2mask=False)
    advice = 'Set poly2mask=True in LoadAnnotations.'
    return leaf, advice, lambda _: leaf['pipeline'][1].update(poly2mask=True)


def without_masks(root):
    leaf = box_set(root, change=lambda c: c['annotations'][0].pop('segmentation'))
    leaf['pipeline'][1]['with_mask'] = True
    advice = 'Remove the annotation or set with_mask=False.'
    return leaf, advice, lambda _: leaf['pipeline'][1].update(with_mask=False)


def panoptic_for_instances(root):
    leaf, _ = panoptic(root)
    leaf['ann_file'] = 'panoptic.json'
    advice = 'Set ann_file to the file of instances'
    return leaf, advice, lambda _: leaf.update(ann_file='set.json')


BOXES = [
    backslashes, quoted, folder_twice, order, orientation, crowds, ignored, too_small, no_index,
    of_another_class, run_length, without_masks, panoptic_for_instances,
]  # fmt: skip


@pytest.mark.parametrize('case', BOXES, ids=lambda case: case.__name__)
def test_boxes(case, tmp_path):
    init_default_scope('mmdet')
    leaf, advice, mend = case(tmp_path)
    text = refused(leaf)
    assert advice in text
    mend(text)
    check_data(leaf, TRAIN)
    dataset = DATASETS.build(leaf)
    names = dataset.metainfo['classes']
    file = json.loads((tmp_path / leaf['ann_file']).read_text())
    truth = {c['id']: c['name'] for c in file['categories']}
    for sample in dataset:
        wanted = [a for a in file['annotations'] if a['image_id'] == sample['img_id']]
        labels = [names[label] for label in sample['gt_bboxes_labels']]
        assert labels == [truth[a['category_id']] for a in wanted] and len(labels) == 2
        assert not sample['gt_ignore_flags'].any()
        assert sample['img'].shape[:2] == (sample['height'], sample['width'])


# ---- large images --------------------------------------------------------------------------------
def test_the_advised_limit_is_enough(tmp_path, monkeypatch, capsys):
    """Above 200 megapixels, where Pillow itself refuses; a limit below is refused again."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)
    init_default_scope('mmdet')
    side = 15_000
    leaf = box_set(tmp_path, count=1, suffix='.png')
    Image.new('1', (side, side)).save(tmp_path / 'img/1.png')

    def task():
        check_data(leaf, TRAIN)

    def call(limit=None):
        code = run(task, SimpleNamespace(verbose=False, max_megapixels=limit))
        return int(code), capsys.readouterr().err

    assert 'If it is meant to be that large, pass --max-megapixels 225.' in call()[1]
    edit(leaf, lambda c: c['images'][0].update(width=side, height=side))
    code, said = call()
    assert code == 3 and 'allowed 1x1 to 100 megapixels. Pass --max-megapixels 225' in said
    assert call(224)[0] == 3
    code, said = call(225)
    assert code == 0 and 'error' not in said
    assert MEGAPIXELS_VARIABLE not in os.environ  # the limit is of one call
