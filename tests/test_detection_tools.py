"""A detector with attention as a user runs it: trained, tested, scored, published, resumed; bad input."""

import json
import subprocess
import sys

import cv2
import pytest
import torch

from mmattn.checkpoint.read import read_checkpoint
from tests.conftest import ROOT, tiny_options
from tests.report_tables import Page
from tests.test_tools import flags, in_the_project, refused, tool  # noqa: F401

CONFIG = 'configs/mask_rcnn_r18_street.py'
SCALES = {
    'train_dataloader.dataset.pipeline.2.scale': (128, 64),
    'val_dataloader.dataset.pipeline.1.scale': (128, 64),
    'test_dataloader.dataset.pipeline.1.scale': (128, 64),
    'model.test_cfg.rcnn.score_thr': 0.0,  # so short a training finds nothing with certainty
}


@pytest.fixture(scope='module')
def options(street):
    return flags(tiny_options(street) | SCALES)


@pytest.fixture(scope='module')
def trained(options, tmp_path_factory):
    """The work dir of a run with two blocks, started from the shell."""
    work_dir = tmp_path_factory.mktemp('work') / 'run'
    command = [sys.executable, 'tools/train.py', CONFIG, '--work-dir', str(work_dir)]
    done = subprocess.run(
        [*command, '--attention', 'cbam,gc', *options], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert 'backbone.layer1.0.cbam' in said and 'identity now' in said
    assert said.index('CBAM after') < said.index('ContextBlock after')
    return work_dir


def test_the_checkpoint_knows_its_blocks(trained):
    content = torch.load(trained / 'iter_4.pth', weights_only=True)
    assert content['meta']['attention']['names'] == 'cbam,gc'
    assert ' --attention cbam,gc ' in content['meta']['command']
    assert cv2.imread(str(trained / 'curves.png')).shape[0] > 300
    places = {k.rsplit('.cbam.', 1)[0] for k in content['state_dict'] if '.cbam.' in k}
    assert len(places) == 8


def test_testing_needs_not_be_told_and_saved_results_score_the_same(
    trained, options, street, tmp_path, capsys
):
    arguments = [CONFIG, str(trained / 'iter_4.pth'), '--work-dir', str(tmp_path)]
    out, show = tmp_path / 'out', tmp_path / 'pictures'
    folders = ['--out', str(out), '--show-dir', str(show), '--report', str(tmp_path / 'report')]
    assert tool('test')([*arguments, *folders, *options]) == 0
    page = Page(tmp_path / 'report' / 'index.html')
    metrics = json.loads((tmp_path / 'metrics' / 'iter_4.json').read_text())['metrics']
    assert len(list(show.glob('*.png'))) == 2
    truth = street / 'annotations' / 'instancesonly_filtered_gtFine_test.json'
    for index, kind in enumerate(('bbox', 'segm')):
        mean = page.table('per class', index)['mean of the classes']
        assert float(mean['AP']) == metrics[f'coco/{kind}_mAP']
        files = ['--annotations', str(truth), '--results', str(out / f'results.{kind}.json')]
        saved = tmp_path / f'{kind}.json'
        assert tool('evaluate')(['coco', *files, '--iou-type', kind, '--json', str(saved)]) == 0
        numbers = json.loads(saved.read_text())['numbers']
        assert metrics[f'coco/{kind}_mAP'] == pytest.approx(numbers['AP'], abs=5e-4)
        assert metrics[f'coco/{kind}_mAP_50'] == pytest.approx(numbers['AP50'], abs=5e-4)


def test_published_weights_know_their_blocks(trained, options, tmp_path, capsys):
    assert tool('publish')([CONFIG, str(trained / 'iter_4.pth'), '--out-dir', str(tmp_path)]) == 0
    (weights,) = tmp_path.glob('*.safetensors')
    assert weights.name.startswith('mask_rcnn_r18_street_cbam_gc-')
    assert read_checkpoint(weights)['meta']['attention']['names'] == 'cbam,gc'
    card = weights.with_suffix('.md').read_text()
    assert 'mmattn.CBAM' in card and f'config `{CONFIG} --attention cbam,gc`' in card
    assert tool('test')([CONFIG, str(weights), '--work-dir', str(tmp_path / 'w'), *options]) == 0
    other = [CONFIG, str(weights), '--attention', 'se', *options]
    refused(capsys, 2, r'--attention se: .* was trained with cbam,gc', 'test', *other)


def test_a_run_is_resumed_with_its_blocks(trained, options, capfd):
    longer = [*options, 'train_cfg.max_iters=6']
    assert tool('train')([CONFIG, '--work-dir', str(trained), '--resume', *longer]) == 0
    content = torch.load(trained / 'iter_6.pth', weights_only=True)
    assert content['meta']['attention']['names'] == 'cbam,gc'


def test_the_config_in_the_work_dir_has_the_blocks(trained, options, tmp_path):
    written = str(trained / 'mask_rcnn_r18_street.py')
    weights = str(trained / 'iter_4.pth')
    if not (trained / 'iter_4.pth').is_file():  # the resumed run keeps its last one alone
        weights = str(trained / 'iter_6.pth')
    assert tool('test')([written, weights, '--work-dir', str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ('arguments', 'pattern'),
    [
        (['--attention', 'cbma'], r'--attention cbma: no such placement. Did you mean cbam\?'),
        (['--attention', 'afnb'], r'--attention afnb: no such placement. .*Known: apnb, bam'),
        (['--resume', 'auto', '--init-from', 'x.pth'], '--resume and --init-from exclude'),
    ],
)
def test_wrong_words(options, tmp_path, capsys, arguments, pattern):
    given = [CONFIG, '--work-dir', str(tmp_path / 'run'), *arguments, *options]
    refused(capsys, 2, pattern, 'train', *given)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('plugin', 'pattern'),
    [
        ("cfg=dict(type='mmattn.CBMA'), at='neck'", 'CBMA.* is not registered.*CBAM'),
        ("cfg=dict(type='mmattn.SE'), at='nek.*'", r"at='nek.\*' matches no module .*neck"),
        ("cfg=dict(type='mmattn.SE'), att='neck'", r'plugins\[0\].att: .* has no att.* at'),
        ("cfg=dict(type='mmattn.SE', reducton=4), at='neck'", 'reducton.*reduction'),
        ("cfg=dict(type='mmattn.SE'), at='neck'", 'neck.* tuple, not one map'),
        ("cfg=dict(type='mmattn.SE'), position='after_conv3'", 'BasicBlock.*before_add'),
        ("cfg=dict(type='mmattn.SE', reduction=500), position='before_add'", 'SE: reduction=500'),
    ],
)
def test_wrong_plugins(options, tmp_path, capsys, plugin, pattern):
    config = tmp_path / 'own.py'
    config.write_text(f"_base_ = '{ROOT / CONFIG}'\nmodel = dict(plugins=[dict({plugin})])\n")
    refused(capsys, 2, pattern, 'train', config, '--work-dir', tmp_path / 'run', *options)


def test_a_batch_too_small_for_a_norm(options, tmp_path, capsys):
    given = [CONFIG, '--work-dir', tmp_path / 'run', '--attention', 'sk', *options]
    refused(capsys, 2, 'SKConv2d: .*batch size 1', 'train', *given, 'train_dataloader.batch_size=1')


def test_annotations_that_do_not_fit_are_named_before_training(options, street, tmp_path, capsys):
    source = street / 'annotations' / 'instancesonly_filtered_gtFine_train.json'
    coco = json.loads(source.read_text())
    coco['annotations'][0]['category_id'] = 99
    broken = tmp_path / 'broken.json'
    broken.write_text(json.dumps(coco))
    option = f'train_dataloader.dataset.ann_file={broken}'
    given = [CONFIG, '--work-dir', str(tmp_path / 'run'), *options, option]
    refused(capsys, 3, r'broken.json.*categor.*99', 'train', *given)


def test_an_evaluator_with_other_annotations(options, tmp_path, capsys):
    option = 'val_evaluator.ann_file=elsewhere.json'
    given = [CONFIG, '--work-dir', str(tmp_path / 'run'), *options, option]
    refused(capsys, 2, 'use different annotation files: .*elsewhere.json', 'train', *given)


def test_no_data_says_how_to_make_it(tmp_path, capsys):
    given = ['configs/retinanet_r18_bccd.py', '--work-dir', str(tmp_path), '--cfg-options']
    root = tmp_path / 'bccd'
    given += [f'{name}_dataloader.dataset.data_root={root}' for name in ('train', 'val', 'test')]
    refused(capsys, 3, 'bccd.* does not exist. .*prepare_data.py bccd', 'train', *given)
