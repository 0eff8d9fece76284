"""tools/check_data.py: every figure against a slow count, every fault by name."""

import contextlib
import io
import json
import shutil
import statistics
from concurrent.futures import ProcessPoolExecutor
from math import log
from multiprocessing import get_context

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools.coco import COCO

from mmattn.datasets import audit
from mmattn.datasets import image_io as files
from mmattn.datasets.validation import check_data
from tests.conftest import ROOT, tiny_options
from tests.test_tools import flags, tool

SEMANTIC, MASKS = (str(ROOT / f'configs/{n}_r18_street.py') for n in ('fcn', 'mask_rcnn'))
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def run(config, root, *options, out=None):
    """Exit code, stdout, stderr and the JSON of a run on the set at `root`."""
    arguments = [config, '--cfg-options', *(f'{x}.dataset.data_root={root}' for x in LOADERS)]
    arguments += options
    if out:
        arguments += ['--json', str(out)]
    stdout, stderr = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = tool('check_data')(arguments)
    stdout.seek(0)
    found = json.loads(out.read_text()) if out and out.exists() else None
    return int(code), stdout.read(), stderr.getvalue(), found


def label_maps(root, split):
    paths = sorted((root / 'gtFine' / split).rglob('*_labelTrainIds.png'))
    return {str(path): np.asarray(Image.open(path)) for path in paths}


@pytest.fixture(scope='module')
def scenes(street, tmp_path_factory):
    """A copy of the tiny set in which two classes never occur."""
    root = tmp_path_factory.mktemp('sound') / 'scenes'
    shutil.copytree(street, root)
    for path in root.rglob('*_labelTrainIds.png'):
        values = np.array(Image.open(path))
        values[np.isin(values, (3, 18))] = 255
        Image.fromarray(values).save(path)
    return root


@pytest.fixture(scope='module')
def sound(scenes, tmp_path_factory):
    return run(SEMANTIC, scenes, out=tmp_path_factory.mktemp('out') / 'sub' / 'data.json')


def test_class_frequencies_are_those_of_a_slow_count(sound, scenes):
    code, stdout, _, found = sound
    assert code == 0 and 'no problem found' in stdout
    for part, split in zip(found['data_sets'], ('train', 'val', 'test'), strict=True):
        maps = label_maps(scenes, split)
        every = np.concatenate([values.ravel() for values in maps.values()])
        labelled = sum(1 for v in every.tolist() if v != 255)
        assert part['images'] == len(maps) and part['pixels'] == every.size
        assert part['ignored_percent'] == pytest.approx(100 * (every.size - labelled) / every.size)
        assert len(part['classes']) == 19
        for i, row in enumerate(part['classes']):
            pixels = sum(1 for v in every.tolist() if v == i)
            assert row['pixels'] == pixels
            assert row['percent'] == pytest.approx(100 * pixels / labelled, abs=1e-12)
            assert row['images'] == sum(bool((values == i).any()) for values in maps.values())
            line = f'{row["name"]:<24s}{row["percent"]:>14.4f}{row["images"]:>8d}\n'
            assert line in stdout
        absent = [row['name'] for i, row in enumerate(part['classes']) if i not in every]
        assert {'wall', 'bicycle'} <= {*absent}
        assert part['absent'] == absent and f'never occur: {", ".join(absent)}\n' in stdout
        assert part['problems'] == part['warnings'] == part['ignored_maps'] == []
        assert f'ignored: {part["ignored_percent"]:.4f} % of all pixels\n' in stdout


def test_class_weights_are_those_of_their_papers(sound, scenes):
    _, stdout, _, found = sound
    maps = list(label_maps(scenes, 'train').values())
    shares, probability = {}, {}
    labelled = sum(int((m != 255).sum()) for m in maps)
    for c in range(19):
        where = [m for m in maps if (m == c).any()]
        probability[c] = sum(int((m == c).sum()) for m in maps) / labelled
        if where:
            shares[c] = sum(int((m == c).sum()) for m in where) / sum(m.size for m in where)
    middle = statistics.median(shares.values())
    expected = [middle / shares[c] if c in shares else 1 for c in range(19)]
    balanced, inverse = (found['class_weight'][k] for k in ('median_frequency', 'inverse_log'))
    assert balanced['values'] == pytest.approx(expected, rel=1e-12)
    expected = [1 / log(1.02 + probability[c]) for c in range(19)]
    assert inverse['values'] == pytest.approx(expected, rel=1e-12)
    assert max(expected) == pytest.approx(50.4983, abs=1e-4)  # a class that never occurs
    for kind in balanced, inverse:
        short = ', '.join(f'{value:.4g}' for value in kind['values'])
        pasted = f'loss_decode=dict(avg_non_ignore=False, class_weight=[{short}])'
        assert f'{kind["source"]}:\n    {pasted}\n' in stdout


def test_weights_can_be_pasted(sound, scenes, tmp_path):
    """As printed, into a config whose loss has avg_non_ignore=True; the loss is torch's own."""
    import torch
    from mmengine.config import Config
    from mmengine.registry import MODELS

    line = next(x for x in sound[1].splitlines() if x.startswith('    loss_decode=')).strip()
    config = tmp_path / 'pasted.py'
    parts = f'decode_head=dict({line}), auxiliary_head=dict({line})'
    config.write_text(f'_base_ = {SEMANTIC!r}\nmodel = dict({parts})\n')
    written = Config.fromfile(config).model.decode_head.loss_decode
    assert Config.fromfile(SEMANTIC).model.decode_head.loss_decode.avg_non_ignore is True
    init_default_scope('mmseg')
    truth = torch.from_numpy(np.stack([*label_maps(scenes, 'train').values()])).long()
    scores = torch.randn(len(truth), 19, *truth.shape[1:])
    made = MODELS.build(written)(scores, truth, ignore_index=255)
    weight = torch.tensor(written.class_weight)
    known = truth < 255
    each = scores.log_softmax(1).permute(0, 2, 3, 1)[known].gather(1, truth[known][:, None])[:, 0]
    right = -(weight[truth[known]] * each).sum() / weight[truth[known]].sum()
    torch.testing.assert_close(made / written.loss_weight, right)
    options = tiny_options(scenes) | {'train_cfg.max_iters': 1}
    work = ['--work-dir', str(tmp_path / 'work'), '--no-validate', '--cfg-options']
    assert tool('train')([str(config), *work[:-1], *flags(options)]) == 0


@pytest.mark.parametrize(
    'loss, form, note',
    [
        (dict(type='CrossEntropyLoss', use_sigmoid=True), '{}', 'which no head of the config has'),
        (dict(type='DiceLoss'), '{}', 'which no head of the config has'),
        (
            [dict(type='CrossEntropyLoss'), dict(type='DiceLoss')],
            'avg_non_ignore=False, {}',
            'in l',
        ),
        (None, 'loss_decode=dict(avg_non_ignore=False, {})', 'for decode_head'),
    ],
)
def test_weights_are_for_a_loss_that_takes_them(loss, form, note):
    made = audit._weights_template(dict(model=dict(decode_head=dict(loss_decode=loss))))
    assert made[0] == form and note in made[1]


def test_each_set_is_read_once(street, tmp_path):
    """Validation and test on the same images, and training in two parts."""
    prefix = 'test_dataloader.dataset.data_prefix'
    options = [f'{prefix}.img_path=leftImg8bit/val', f'{prefix}.seg_map_path=gtFine/val']
    code, stdout, stderr, found = run(SEMANTIC, street, *options, out=tmp_path / 'out.json')
    assert code == 0
    assert [part['loaders'] for part in found['data_sets']] == [[LOADERS[0]], [*LOADERS[1:]]]
    assert '(val_dataloader, test_dataloader): 2 images' in stdout
    lines = [line for line in stderr.splitlines() if line.startswith('checking ')]
    assert [line.split(': ')[1].split(' in ')[0] for line in lines] == ['4', '2']


def test_weights_are_of_all_training_data(street, tmp_path):
    leaf = tmp_path / 'leaf.py'
    parts = [
        dict(
            type='CityscapesDataset',
            data_root=str(street),
            data_prefix=dict(img_path=f'leftImg8bit/{split}', seg_map_path=f'gtFine/{split}'),
        )
        for split in ('train', 'val')
    ]
    train = dict(_delete_=True, type='ConcatDataset', datasets=parts)
    leaf.write_text(f'_base_ = {SEMANTIC!r}\ntrain_dataloader = dict(dataset={train})\n')
    options = [f'{x}.dataset.data_root={street}' for x in LOADERS[1:]]
    found = audit.audit(leaf, options=options)
    loaders = [part['loaders'] for part in found['data_sets']]
    assert loaders == [[LOADERS[0]], [*LOADERS[:2]], [LOADERS[2]]]  # val is trained on, too
    maps = [*label_maps(street, 'train').values(), *label_maps(street, 'val').values()]
    labelled = sum(int((m != 255).sum()) for m in maps)
    expected = [
        1 / log(1.02 + sum(int((m == c).sum()) for m in maps) / labelled) for c in range(19)
    ]
    assert found['class_weight']['inverse_log']['values'] == pytest.approx(expected)


def test_a_sound_set_need_not_be_looked_at_again(street, monkeypatch):
    init_default_scope('mmseg')
    run(SEMANTIC, street)
    monkeypatch.setattr('mmattn.datasets.image_io.inspect_pair', None)
    prefix = dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train')
    leaf = dict(type='CityscapesDataset', data_root=str(street), data_prefix=prefix)
    check_data(leaf, 'train_dataloader')


@pytest.fixture(scope='module')
def broken(street, tmp_path_factory):
    """A set with a fault of every kind; the run, and the files by fault."""
    root = tmp_path_factory.mktemp('broken') / 'scenes'
    shutil.copytree(street, root)
    photos, labels = root / 'leftImg8bit/train/street', root / 'gtFine/train/street'
    first = 'street_000000_000000'
    at = {}
    for fault in (
        'values', 'size', 'deep', 'colour', 'jpeg', 'cut', 'flip', 'page', 'bare', 'void', 'lonely',
    ):  # fmt: skip
        image, label = (
            photos / f'{fault}_leftImg8bit.png',
            labels / f'{fault}_gtFine_labelTrainIds.png',
        )
        shutil.copy(photos / f'{first}_leftImg8bit.png', image)
        shutil.copy(labels / f'{first}_gtFine_labelTrainIds.png', label)
        at[fault] = image, label
    values = np.array(Image.open(at['values'][1]))
    values[5, 7:11], values[9, 2] = 33, 19
    Image.fromarray(values).save(at['values'][1])
    Image.fromarray(values[:32, :64] % 19).save(at['size'][1])
    cv2.imwrite(str(at['deep'][1]), np.full((64, 128), 26001, np.uint16))
    shutil.copy(at['colour'][0], at['colour'][1])
    Image.open(at['jpeg'][0]).convert('L').save(at['jpeg'][1], format='JPEG')
    data = at['cut'][0].read_bytes()
    at['cut'][0].write_bytes(data[: len(data) // 2])
    at['flip'][0].write_bytes(data[:-200] + bytes([data[-200] ^ 1]) + data[-199:])
    at['page'][0].write_text('<html>')
    at['bare'][1].unlink()
    Image.fromarray(np.full((64, 128), 255, np.uint8)).save(at['void'][1])
    at['lonely'][0].unlink()
    out = tmp_path_factory.mktemp('out') / 'data.json'
    return run(SEMANTIC, root, out=out), at


def test_every_fault_is_listed(broken):
    (code, stdout, stderr, found), at = broken
    assert code == 3
    assert stderr.endswith(
        f'error: 9 problems in the data of {SEMANTIC}, named above. Fix them before training.\n'
    )
    part = found['data_sets'][0]
    expected = {
        'bare': f'{at["bare"][1]} is missing',
        'values': f'labels 19 (1 px), 33 (4 px) in {at["values"][1]} are no classes (allowed 0..18 and 255)',
        'size': f'label map {at["size"][1]} is 64x32, its image 128x64',
        'deep': f'label map {at["deep"][1]} has mode I;16, not 8-bit single-channel: 16 bits a pixel',
        'colour': f'label map {at["colour"][1]} has mode RGB, not 8-bit single-channel: colours',
        'jpeg': f'label map {at["jpeg"][1]} is a JPEG, whose compression changes ids',
        'cut': f'image {at["cut"][0]} is cut short: its end is missing',
        'flip': f'image {at["flip"][0]} is damaged: libpng error',
        'page': f'image {at["page"][0]} cannot be read: it is damaged or no image',
    }  # fmt: skip
    assert len(part['problems']) == len(expected)
    for fault, text in expected.items():
        [line] = [line for line in part['problems'] if text in line]
        assert f'problem: {line}\n' in stdout, fault
    assert any('train ids' in line and 'prepare_data.py' in line for line in part['problems'])
    assert part['wrong_labels'] == {'19': 1, '33': 4}
    assert part['ignored_maps'] == [str(at['void'][1])]
    assert f'all is ignored in 1 label maps: {at["void"][1]}\n' in stdout
    [warning] = part['warnings']
    assert '1 label maps belong to no image of' in warning and str(at['lonely'][1]) in warning
    assert part['images'] == 14
    assert [len(other['problems']) for other in found['data_sets'][1:]] == [0, 0]


def test_the_figures_are_of_the_readable_label_maps(broken):
    (*_, found), at = broken
    part = found['data_sets'][0]
    unread = {str(at[f][1]) for f in ('deep', 'colour', 'jpeg', 'lonely')}
    root = at['bare'][0].parents[3]
    maps = {p: m for p, m in label_maps(root, 'train').items() if p not in unread}
    every = np.concatenate([values.ravel() for values in maps.values()])
    assert part['pixels'] == every.size
    labelled = int((every < 19).sum())
    for i, row in enumerate(part['classes']):
        assert row['pixels'] == int((every == i).sum())
        assert row['percent'] == pytest.approx(100 * int((every == i).sum()) / labelled)
        assert row['images'] == sum(bool((values == i).any()) for values in maps.values())


def test_a_long_list_is_cut_on_the_screen_alone(broken, tmp_path, monkeypatch):
    _, at = broken
    monkeypatch.setattr(audit, '_SHOWN', 2)
    root = at['bare'][0].parents[3]
    _, stdout, _, found = run(SEMANTIC, root, out=tmp_path / 'out.json')
    assert stdout.count('problem: ') == 2
    assert '... and 7 more problems; --json OUT lists all' in stdout
    assert len(found['data_sets'][0]['problems']) == 9


def test_a_missing_set_does_not_hide_the_others(street, tmp_path):
    gone = f'val_dataloader.dataset.data_root={tmp_path}/street'
    code, _, _, found = run(SEMANTIC, street, gone, out=tmp_path / 'out.json')
    assert code == 3
    assert [len(part['problems']) for part in found['data_sets']] == [0, 1, 0]
    assert 'does not exist. Make it with' in found['data_sets'][1]['problems'][0]
    assert found['data_sets'][2]['images'] == 2


def test_masks_instead_of_labels(street, tmp_path):
    root = tmp_path / 'scenes'
    shutil.copytree(street, root)
    for path in (root / 'gtFine/train').rglob('*_labelTrainIds.png'):
        values = np.asarray(Image.open(path))
        Image.fromarray(np.where(values == 13, np.uint8(255), np.uint8(0))).save(path)
    code, stdout, _, _ = run(SEMANTIC, root)
    assert (
        code == 3
        and "nothing but 0 and 255, as black and white masks do, but 0 means 'road'" in stdout
    )


def test_usage_and_writing(street, tmp_path, capsys):
    assert tool('check_data')(['configs/none.py']) == 2
    assert 'config configs/none.py does not exist' in capsys.readouterr().err
    code, _, stderr, _ = run(SEMANTIC, street, 'train_dataloader.batch=2')
    assert code == 2 and 'unknown config key train_dataloader.batch' in stderr
    (tmp_path / 'file').write_text('')
    code, _, stderr, _ = run(SEMANTIC, street, out=tmp_path / 'file' / 'out.json')
    assert code == 7 and 'Choose another file with --json' in stderr


# ---- COCO's format -----------------------------------------------------------------------------
@pytest.fixture
def things(street, tmp_path):
    """A copy of the set with one image emptied, a group, and boxes of all sizes."""
    root = tmp_path / 'scenes'
    shutil.copytree(street, root)
    path = root / 'annotations/instancesonly_filtered_gtFine_train.json'
    coco = json.loads(path.read_text())
    coco['annotations'] = [a for a in coco['annotations'] if a['image_id'] != 2]
    for annotation, area in zip(coco['annotations'], (1023, 1024, 9215, 9216)):
        annotation['area'] = area
    coco['annotations'][4]['iscrowd'] = 1
    mask = np.zeros((64, 128), np.uint8)
    mask[:9] = 1
    from pycocotools import mask as coder

    rle = coder.encode(np.asfortranarray(mask))
    rle['counts'] = rle['counts'].decode()
    coco['annotations'][4]['segmentation'] = rle
    path.write_text(json.dumps(coco))
    return root, path


def test_boxes_are_those_of_a_slow_count(things, tmp_path):
    root, path = things
    code, stdout, _, found = run(MASKS, root, out=tmp_path / 'out.json')
    assert code == 0, stdout
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    part = found['data_sets'][0]
    assert part['file'] == str(path) and part['images'] == 4
    for row, category in zip(part['categories'], coco.loadCats(coco.getCatIds()), strict=True):
        ident = category['id']
        own = [a for a in coco.anns.values() if a['category_id'] == ident and not a['iscrowd']]
        assert row['name'] == category['name']
        assert row['groups'] == len(coco.getAnnIds(catIds=[ident], iscrowd=True))
        assert row['boxes'] == len(own) == row['small'] + row['medium'] + row['large']
        assert row['small'] == sum(a['area'] < 32**2 for a in own)
        assert row['large'] == sum(a['area'] >= 96**2 for a in own)
        assert row['images'] == len({a['image_id'] for a in own})
        line = ''.join(
            f'{row[k]:>9d}' for k in ('boxes', 'small', 'medium', 'large', 'groups', 'images')
        )
        assert f'{row["name"]:<24s}{line}\n' in stdout
    total = {k: sum(row[k] for row in part['categories']) for k in ('medium', 'large', 'groups')}
    assert total['medium'] >= 2 and total['large'] >= 1 and total['groups'] == 1
    empty = coco.imgs[2]['file_name']
    assert empty in part['images_without_objects']
    assert f'without objects: {len(part["images_without_objects"])} of 4 images: ' in stdout
    assert found['class_weight'] is None and 'class_weight' not in stdout


def test_what_the_loader_drops_is_counted_by_reason(things, tmp_path):
    root, path = things
    content = json.loads(path.read_text())
    small = content['annotations'][0]
    small['ignore'] = 1
    path.write_text(json.dumps(content))
    code, stdout, _, found = run(MASKS, root, out=tmp_path / 'out.json')
    assert code == 0, stdout
    part, total = found['data_sets'][0], len(content['annotations'])
    kept = part['held']
    assert kept['dropped']['with ignore=1'] == kept['dropped']['groups (iscrowd=1)'] == 1
    assert kept['boxes'] == total - sum(kept['dropped'].values()) == part['boxes']
    line = f'the loader keeps {kept["images"]} of 4 images, {kept["boxes"]} boxes; dropped or ignor'
    assert line in stdout and '1 with ignore=1' in stdout and '1 groups (iscrowd=1)' in stdout


def test_every_faulty_photograph_is_listed(things, tmp_path):
    root, _ = things
    photos = sorted((root / 'leftImg8bit/train').rglob('*.png'))
    photos[0].unlink()
    data = photos[1].read_bytes()
    photos[1].write_bytes(
        data[:-200] + bytes([data[-200] ^ 1]) + data[-199:]
    )  # only decoding tells
    Image.new('RGB', (64, 32)).save(photos[2])
    code, stdout, _, found = run(MASKS, root, out=tmp_path / 'out.json')
    assert code == 3
    problems = found['data_sets'][0]['problems']
    assert len(problems) == 3
    for text in (
        f'{photos[0]} is missing',
        f'image {photos[1]} is damaged: libpng error',
        f'{photos[2]} is 64x32, the JSON says 128x64',
    ):
        assert len([p for p in problems if text in p]) == 1, text
    assert found['data_sets'][0]['boxes'] > 0  # counted nevertheless
    assert all(f'problem: {p}' in stdout for p in problems)


def test_a_faulty_file_is_said_as_the_check_before_training_says_it(things, tmp_path):
    root, path = things
    coco = json.loads(path.read_text())
    coco['annotations'][0]['bbox'][2] = float('nan')
    path.write_text(json.dumps(coco))
    code, _, _, found = run(MASKS, root, out=tmp_path / 'out.json')
    assert code == 3
    [problem] = found['data_sets'][0]['problems']
    assert 'bbox[2] is nan' in problem and str(path) in problem
    del coco['annotations'][0]
    coco['images'][0]['file_name'] = 7
    path.write_text(json.dumps(coco))
    code, _, _, found = run(MASKS, root, out=tmp_path / 'out.json')
    assert code == 3 and 'file_name is 7' in found['data_sets'][0]['problems'][0]
    path.write_text('{')
    code, _, _, found = run(MASKS, root, out=tmp_path / 'out.json')
    assert code == 3 and 'not valid JSON' in found['data_sets'][0]['problems'][0]
    path.unlink()
    code, _, _, found = run(MASKS, root, out=tmp_path / 'out.json')
    assert code == 3 and 'does not exist' in found['data_sets'][0]['problems'][0]
    assert found['data_sets'][1]['boxes'] > 0


# ---- a file ------------------------------------------------------------------------------------
def test_a_damaged_jpeg_is_known_by_what_its_decoder_prints(tmp_path):
    """OpenCV and Pillow both decode it, to other pixels."""
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (120, 90))
    good, bad, odd = (tmp_path / f'{name}.jpg' for name in ('good', 'bad', 'odd'))
    cv2.imwrite(str(good), picture)
    data = good.read_bytes()
    middle = len(data) // 2
    bad.write_bytes(data[:middle] + data[-2:])
    odd.write_bytes(data[:-2] + b'\x12' * 40 + data[-2:])
    Image.open(bad).load()
    with ProcessPoolExecutor(1, get_context('spawn'), files.capture_decoder_messages) as pool:
        found = list(pool.map(files.inspect_image, map(str, (good, bad, good, odd, good))))
    assert found[0] == found[2] == found[4] == []
    reason = found[1][0].text.split(': ', 1)[1]
    assert found[1] == [files.Fault('file', f'image {bad} is damaged: {reason}')]
    assert 'Corrupt JPEG data: premature end' in found[1][0].text
    assert found[3][0].kind == 'warning' and ' extraneous bytes' in found[3][0].text


@pytest.mark.parametrize('name', ['street', 'coco', 'bccd', 'dsb2018', 'cityscapes'])
def test_what_prepares_a_known_set_is_a_command_that_exists(name, tmp_path, monkeypatch):
    """Only `street` is made from nothing; the others start from what one has downloaded."""
    from mmattn.datasets.validation import _PREPARED

    command = _PREPARED[name].rpartition(': python ')[2].split()
    assert command[:2] == ['tools/prepare_data.py', name]
    assert ('--root' in command) is (name != 'street')
    monkeypatch.chdir(ROOT)
    empty = [str(tmp_path) if part == 'DIR' else part for part in command[1:]]
    if name == 'street':
        empty += [
            '--out',
            str(tmp_path / 'street'),
            '--images',
            '1',
            '1',
            '1',
            '--size',
            '64',
            '32',
        ]
    else:
        empty += ['--out', str(tmp_path / 'out')]
    assert tool('prepare_data')(empty) == (0 if name == 'street' else 3)
