"""The tools as a user runs them: one training run, what follows from it, and bad input."""

import importlib.util
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from tests.conftest import ROOT, randomise, tiny_options
from tests.report_tables import Page

CONFIG = 'configs/ccnet_r18_street.py'


def tool(name):
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def flags(options: dict) -> list[str]:
    return ['--cfg-options', *(f'{k}={v}' for k, v in options.items())]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    from mmengine.logging import MMLogger

    monkeypatch.chdir(ROOT)
    MMLogger._instance_dict.clear()  # each test has a stdout of its own, which loggers keep


@pytest.fixture(scope='module')
def trained(street, tmp_path_factory):
    """The work dir of a tiny run started from the shell, and its options."""
    work_dir = tmp_path_factory.mktemp('work') / 'run'
    options = flags(tiny_options(street))
    command = [sys.executable, 'tools/train.py', CONFIG, '--work-dir', str(work_dir), '--seed', '3']
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert 'eta:' in done.stdout + done.stderr  # time left is shown
    return work_dir, options


def test_training_leaves_all_that_a_user_needs(trained):
    work_dir, _ = trained
    assert (work_dir / 'best.pth').resolve().name.startswith('best_mIoU_iter_')
    assert (work_dir / 'iter_4.pth').is_file()
    assert (work_dir / 'ccnet_r18_street.py').is_file()
    assert cv2.imread(str(work_dir / 'curves.png')).shape[0] > 300
    assert list(work_dir.glob('*/*.log')) and list(work_dir.rglob('events.out.tfevents*'))
    content = torch.load(work_dir / 'iter_4.pth', weights_only=True)
    assert content['meta']['seed'] == 3 and content['meta']['iter'] == 4
    assert content['meta']['command'].startswith(
        f'python tools/train.py {CONFIG} --seed 3 --cfg-options '
    )


def test_test_writes_metrics_predictions_and_pictures(trained, tmp_path, capsys):
    work_dir, options = trained
    out, show, report = tmp_path / 'maps', tmp_path / 'pictures', tmp_path / 'report'
    arguments = [CONFIG, str(work_dir / 'best.pth'), '--work-dir', str(work_dir)]
    folders = ['--out', str(out), '--show-dir', str(show), '--report', str(report)]
    assert tool('test')([*arguments, *folders, *options]) == 0
    record = json.loads((work_dir / 'metrics' / 'best.json').read_text())
    said = capsys.readouterr().out
    assert f'mIoU                     {record["metrics"]["mIoU"]}' in said
    check_report(report, record, said)
    assert 'IoU.road' in record['metrics'] and record['hardware']
    maps = sorted(out.glob('*.png'))
    assert len(maps) == 2 and cv2.imread(str(maps[0]), cv2.IMREAD_UNCHANGED).shape == (64, 128)
    assert len(list(show.glob('*.png'))) == 2
    dump = tmp_path / 'all.pkl'
    assert tool('test')([*arguments, '--out', str(dump), *options]) == 0
    assert dump.stat().st_size > 1000


def check_report(folder, record, said):
    """The page has the printed numbers, and those of the label maps pixel by pixel."""
    page = Page(folder / 'index.html')
    for name, cells in page.table('as the test prints it').items():
        assert f'{name:24s} {cells["value"]}\n' in said
    assert page.table('as the test prints it').keys() == record['metrics'].keys()
    assert record['sha256'] in page.text and record['command'] in page.text
    classes, matrix = page.table('per class'), page.table('confusion matrix in numbers')
    mean = classes.pop('mean of the classes')
    assert float(mean['IoU']) == record['metrics']['mIoU']
    counts = np.array([[*map(int, row.values())] for row in matrix.values()])
    assert counts.shape == (19, 19) and counts.sum() > 10000
    for index, (name, cells) in enumerate(classes.items()):
        value = record['metrics'][f'IoU.{name}']
        assert cells['IoU'] == ('absent' if value is None else f'{value:.2f}')
        union = counts[index].sum() + counts[:, index].sum() - counts[index, index]
        if union:
            assert round(100 * counts[index, index] / union, 2) == value
    worst = [caption for file, caption in page.pictures.items() if 'worst' in file]
    assert len(worst) == 2 and all('leftImg8bit/test' in caption for caption in worst)


def test_infer_on_an_image_and_a_folder(trained, street, tmp_path):
    work_dir, options = trained
    folder = street / 'leftImg8bit' / 'test'
    checkpoint = str(work_dir / 'best.pth')
    assert (
        tool('infer')([CONFIG, checkpoint, str(folder), '--out-dir', str(tmp_path), *options]) == 0
    )
    found = sorted((tmp_path / 'overlay').rglob('*.png'))
    assert len(found) == 2
    labels = cv2.imread(str(found[0]).replace('overlay', 'labels'), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (64, 128) and labels.max() < 19
    image = next(folder.rglob('*.png'))
    out = tmp_path / 'single'
    assert tool('infer')([CONFIG, checkpoint, str(image), '--out-dir', str(out), *options]) == 0
    assert (out / 'overlay' / image.name).is_file()


def test_infer_names_what_it_cannot_read_and_does_the_rest(trained, street, tmp_path, capsys):
    work_dir, options = trained
    folder = tmp_path / 'photos'
    shutil.copytree(street / 'leftImg8bit' / 'test' / 'street', folder)
    (folder / 'broken.jpg').write_bytes(b'\xff\xd8nothing')
    arguments = [
        CONFIG,
        str(work_dir / 'best.pth'),
        str(folder),
        '--out-dir',
        str(tmp_path / 'out'),
    ]
    assert tool('infer')([*arguments, *options]) == 3
    said = capsys.readouterr().err
    assert '1 left out, the others are done' in said and said.count('broken.jpg') == 1
    assert len(list((tmp_path / 'out' / 'overlay').glob('*.png'))) == 2


def test_resume_goes_on_where_it_stopped(trained, tmp_path, capsys):
    work_dir, options = trained
    copy = tmp_path / 'run'  # a moved work dir resumes too
    shutil.copytree(work_dir, copy, symlinks=True)
    arguments = [CONFIG, '--work-dir', str(copy), '--resume', *options, 'train_cfg.max_iters=6']
    assert tool('train')(arguments) == 0
    assert torch.load(copy / 'iter_6.pth', weights_only=True)['meta']['iter'] == 6
    log = max(copy.glob('*/*.log')).read_text()
    assert 'resumed epoch: 0, iter: 4' in log
    from mmattn.visualization.curves import read_scalars

    assert sorted(read_scalars(copy)['mIoU']) == [2, 4, 6]


def test_the_config_in_the_work_dir_can_be_used_again(trained, tmp_path):
    work_dir, _ = trained
    written, best = work_dir / 'ccnet_r18_street.py', work_dir / 'best.pth'
    assert tool('test')([str(written), str(best), '--work-dir', str(tmp_path)]) == 0


def test_resume_with_nothing_there(tiny, tmp_path, capsys):
    """It starts from scratch and says so; a file that is named has to be there."""
    short = ['train_cfg.max_iters=1', 'default_hooks.checkpoint.interval=1']
    arguments = [CONFIG, '--work-dir', str(tmp_path), '--no-validate', '--no-rehearsal']
    assert tool('train')([*arguments, '--resume', 'none.pth', *flags(tiny), *short]) == 4
    assert 'none.pth does not exist' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert tool('train')([*arguments, '--resume', *flags(tiny), *short]) == 0
    said = capsys.readouterr()
    assert f'nothing to resume in {tmp_path}: starting from scratch' in said.out + said.err
    assert (tmp_path / 'iter_1.pth').is_file()


def test_untrained_network_is_near_chance_and_a_few_steps_help(trained, tiny, tmp_path):
    from mmattn.engine.test import test as evaluate

    assert evaluate(CONFIG, None, work_dir=tmp_path, cfg_options=tiny)['mIoU'] < 10


# ---- bad input: one sentence, the right code, nothing overwritten ----------------------------------
def refused(capsys, code, pattern, name, *arguments):
    import re

    assert tool(name)([str(a) for a in arguments]) == code
    errors = capsys.readouterr().err
    lines = [x for x in errors.splitlines() if x.startswith('error: ')]
    assert len(lines) == 1 and re.search(pattern, lines[0]), errors
    assert 'Traceback' not in errors


def test_no_data_is_exit_3(tmp_path, capsys):
    missing = [
        f'{x}_dataloader.dataset.data_root={tmp_path}/none' for x in ('train', 'val', 'test')
    ]
    refused(
        capsys, 3, 'none does not exist. .*prepare_data.py cityscapes --root DIR',
        'train', 'configs/ccnet_r101_cityscapes.py', '--work-dir', tmp_path / 'w', '--cfg-options', *missing,
    )  # fmt: skip


@pytest.mark.parametrize(
    'option, code, pattern',
    [
        (
            'model.decode_head.num_classes=7',
            2,
            r'model.decode_head.num_classes=7 does not fit the data',
        ),
        ('optim_wrapper.optimizer.lrr=1', 2, 'unknown config key optim_wrapper.optimizer.lrr'),
        ('train_dataloader.dataset.pipeline.3.crop_size=9,9,9', 2, 'cannot be built: .*crop_size'),
        ('optim_wrapper.optimizer.lr=-1', 2, 'cannot be built: Invalid learning rate'),
        ('model.decode_head.channels=4', 2, 'cannot be built: .*in_channels=4, allowed 8'),
        (
            'train_dataloader.dataset.data_prefix.seg_map_path=gtFine/nowhere',
            3,
            'gtFine/nowhere does not exist',
        ),
    ],
)
def test_wrong_options(tiny, tmp_path, capsys, option, code, pattern):
    work_dir = tmp_path / 'w'
    refused(capsys, code, pattern, 'train', CONFIG, '--work-dir', work_dir, *flags(tiny), option)
    assert not work_dir.exists() or not list(work_dir.rglob('*.pth'))


def test_work_dir_that_cannot_be_written(tiny, tmp_path, capsys):
    (tmp_path / 'file').write_text('kept')
    refused(
        capsys, 7, r'cannot write to .*file/work: .*Choose another folder with --work-dir',
        'train', CONFIG, '--work-dir', tmp_path / 'file' / 'work', *flags(tiny),
    )  # fmt: skip
    assert (tmp_path / 'file').read_text() == 'kept'


def test_damaged_image_is_named_before_training(street, tmp_path, capsys):
    root = tmp_path / 'street'
    shutil.copytree(street, root)
    image = sorted((root / 'leftImg8bit' / 'train').rglob('*.png'))[2]
    image.write_bytes(image.read_bytes()[:-40])
    options = flags(tiny_options(root))
    refused(
        capsys,
        3,
        f'image .*{image.name} is cut short',
        'train',
        CONFIG,
        '--work-dir',
        tmp_path / 'w',
        *options,
    )


def test_image_damaged_inside_is_named_in_training(street, tmp_path, capsys):
    root = tmp_path / 'street'
    shutil.copytree(street, root)
    for image in (root / 'leftImg8bit' / 'train').rglob('*.png'):
        data = bytearray(image.read_bytes())
        data[33:-60] = bytes(len(data) - 93)  # header and end are sound
        image.write_bytes(data)
    options = flags(tiny_options(root) | {'train_dataloader.num_workers': 1})
    refused(
        capsys,
        3,
        r'image .*_leftImg8bit.png',
        'train',
        CONFIG,
        '--work-dir',
        tmp_path / 'w',
        *options,
    )


@pytest.mark.parametrize('name', ['test', 'infer', 'publish'])
def test_checkpoint_of_another_model(trained, street, tmp_path, capsys, name):
    work_dir, options = trained
    other = 'configs/fcn_r18_street.py'
    arguments = dict(
        test=['--work-dir', tmp_path / 'w', *options],
        infer=[street, '--out-dir', tmp_path / 'o', *options],
        publish=['--out-dir', tmp_path / 'o'],
    )[name]
    refused(
        capsys, 4, r'does not fit the model: .*left over: decode_head.cca', name, other,
        work_dir / 'best.pth', *arguments,
    )  # fmt: skip


def test_infer_with_an_option_that_cannot_be_built(trained, street, tmp_path, capsys):
    work_dir, options = trained
    refused(
        capsys, 2, 'cannot be built: .*in_channels=4, allowed 8', 'infer', CONFIG,
        work_dir / 'best.pth', street, '--out-dir', tmp_path, *options, 'model.decode_head.channels=4',
    )  # fmt: skip


@pytest.mark.parametrize('name', ['test', 'infer', 'publish'])
def test_checkpoint_with_code_in_it(street, tiny, tmp_path, capsys, name):
    from tests.checkpoint.test_checkpoint import Payload

    marker, path = tmp_path / 'executed', tmp_path / 'bad.pth'
    torch.save(dict(state_dict={}, meta=Payload(marker)), path)
    arguments = dict(
        test=['--work-dir', tmp_path / 'w', *flags(tiny)],
        infer=[street, '--out-dir', tmp_path / 'o', *flags(tiny)],
        publish=['--out-dir', tmp_path / 'o'],
    )[name]
    refused(capsys, 4, 'it is refused', name, CONFIG, path, *arguments)
    assert not marker.exists()


# ---- publishing ------------------------------------------------------------------------------------
def test_publish_twice_gives_the_same_bytes_and_a_card(trained, tmp_path, capsys):
    from safetensors import safe_open

    from mmattn.files import sha256

    work_dir, options = trained
    tool('test')([CONFIG, str(work_dir / 'best.pth'), '--work-dir', str(work_dir), *options])
    listings = []
    for folder in 'a', 'b':
        arguments = [CONFIG, str(work_dir / 'best.pth'), '--out-dir', str(tmp_path / folder)]
        assert tool('publish')(arguments) == 0
        listings.append({p.name: sha256(p) for p in (tmp_path / folder).iterdir()})
    assert listings[0] == listings[1]
    (safe,) = (tmp_path / 'a').glob('*.safetensors')
    (pth,) = (tmp_path / 'a').glob('*.pth')
    for path in safe, pth:
        assert path.stem == f'ccnet_r18_street-{sha256(path)[:8]}'
    trained_weights = torch.load(work_dir / 'best.pth', weights_only=True)['state_dict']
    published = torch.load(pth, weights_only=True)
    assert set(published) == {'state_dict', 'meta'}
    with safe_open(safe, 'pt') as file:
        assert set(file.keys()) == set(trained_weights)
        for key, value in trained_weights.items():
            assert torch.equal(file.get_tensor(key), value)
            assert torch.equal(published['state_dict'][key], value)
    card = safe.with_suffix('.md').read_text()
    record = json.loads((work_dir / 'metrics' / 'best.json').read_text())
    for text in (
        sha256(safe),
        sha256(pth),
        f'| mIoU | {record["metrics"]["mIoU"]} |',
        f'python tools/train.py {CONFIG} --seed 3',
        "type='mmattn.CCHead'",
        'CityscapesDataset',
    ):
        assert text in card
    assert str(work_dir) not in card
    assert str(work_dir.parent.parent) not in card  # the data lie there: given as an absolute path
    assert tool('test')([CONFIG, str(safe), '--work-dir', str(tmp_path / 'w'), *options]) == 0
    again = json.loads((tmp_path / 'w' / 'metrics' / f'{safe.stem}.json').read_text())
    assert again['metrics']['mIoU'] == record['metrics']['mIoU']


def test_weights_that_are_not_finite_are_not_published(trained, tmp_path, capsys):
    work_dir, _ = trained
    content = torch.load(work_dir / 'best.pth', weights_only=True)
    content['state_dict']['decode_head.cca.gamma.scale'].fill_(float('nan'))
    torch.save(content, tmp_path / 'nan.pth')
    refused(
        capsys, 4, 'gamma.scale holds 1 non-finite', 'publish', CONFIG, tmp_path / 'nan.pth',
        '--out-dir', tmp_path / 'o',
    )  # fmt: skip
    assert not (tmp_path / 'o').exists()


def test_camvid_weights_carry_their_licence():
    from mmattn.datasets.camvid import CamVidDataset

    assert 'CC BY-NC 4.0' in CamVidDataset.METAINFO['licence']


def test_a_checkpoint_of_mmsegmentation_gives_the_same_prediction(tiny, tmp_path, street):
    """A whole segmentor with MMSegmentation's CCHead; its state dict loads into ours strictly."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.apis import inference_model
    from mmseg.registry import MODELS

    from mmattn.config.leaves import replace_type
    from mmattn.config.load import load_config
    from mmattn.engine.network import build_model

    cfg: Config = load_config(CONFIG)
    replace_type(cfg.model, 'SyncBN', 'BN')
    cfg.model.type, cfg.model.decode_head.type = 'EncoderDecoder', 'CCHead'
    init_default_scope('mmseg')
    theirs = randomise(MODELS.build(cfg.model)).eval()
    theirs.cfg = cfg
    torch.save(dict(state_dict=theirs.state_dict()), tmp_path / 'theirs.pth')
    ours, _ = build_model(CONFIG, tmp_path / 'theirs.pth', tiny)
    image = cv2.imread(str(next((street / 'leftImg8bit').rglob('*.png'))))
    mine, other = (inference_model(m, image).seg_logits.data for m in (ours, theirs))
    assert np.isfinite(other).all()
    torch.testing.assert_close(
        mine / other.abs().max(), other / other.abs().max(), rtol=0, atol=1e-5
    )


def test_the_whole_demo(tmp_path, capsys):
    from mmattn.cli.demo import demo

    options = {k: v for k, v in tiny_options(tmp_path).items() if 'data_root' not in k}
    scores = demo(tmp_path / 'out', tmp_path / 'street', (4, 2, 2), options)
    assert set(scores) == {'ccnet', 'fcn', 'untrained'}
    shown = capsys.readouterr().out
    for name, score in scores.items():
        assert f'{score:.2f}' in shown, name
    assert cv2.imread(str(tmp_path / 'out' / 'overview.jpg')) is not None
    assert len(list((tmp_path / 'out' / 'published').iterdir())) == 4
    for name in 'ccnet', 'fcn':
        assert (tmp_path / 'out' / f'{name}_r18_street' / 'curves.png').is_file()
