"""Blocks in detectors of ultralytics, also through its trainer, and its page."""

# ruff: noqa: E402
import atexit
import logging
import os
import shutil
import tempfile

import pytest
import torch
from torch import nn

import mmattn
from mmattn.plugins import named_plugins
from tests.libraries.checks import CHECKS, Case, run_page

CONFIG = tempfile.mkdtemp()
atexit.register(shutil.rmtree, CONFIG, ignore_errors=True)
os.environ |= dict(YOLO_OFFLINE='1', YOLO_CONFIG_DIR=CONFIG)  # nothing is fetched or sent
pytest.importorskip('ultralytics', reason='ultralytics is missing')

from PIL import Image
from ultralytics import YOLO, settings
from ultralytics.cfg import get_cfg
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel, torch_safe_load


def yolo():
    model = DetectionModel('yolo11n.yaml', nc=2, verbose=False)
    model.args = get_cfg()
    for name, module in model.named_modules():  # those of ultralytics shrink the maps to nothing
        if isinstance(module, nn.Conv2d) and not name.endswith('dfl.conv'):
            nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
    return model


def loss(model, images):
    """The loss of the library: one box in the middle of each image."""
    number = torch.arange(len(images))
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]).repeat(len(images), 1)
    batch = dict(img=images, batch_idx=number, cls=number[:, None] % 2, bboxes=boxes)
    return model(batch)[0].sum()


CASES = {
    'yolo11n': Case(
        build=yolo,
        places=(dict(at='model.[68]'), dict(at='model.22')),
        hosts=('model.6', 'model.8', 'model.22'),
        channels=(128, 256, 256),
        loss=loss,
    ),
}


@pytest.mark.parametrize('check', CHECKS)
@pytest.mark.parametrize('name', CASES)
def test_network(name, check):
    CHECKS[check](CASES[name])


# ---- training, as a user does it ----
PLUGINS = [dict(cfg=dict(type='CBAM', init='identity'), at='model.[468]')]
PATHS = ['model.4.cbam', 'model.6.cbam', 'model.8.cbam']
TRAINING = dict(data='data.yaml', epochs=1, imgsz=64, batch=4, device='cpu', plots=False)


class Trainer(DetectionTrainer):
    """That of the page, which keeps the weights from which a training starts."""

    def get_model(self, cfg=None, weights=None, verbose=True):
        model = super().get_model(cfg, None, verbose)
        mmattn.insert(model, PLUGINS)
        if weights is not None:
            model.load(weights)
        type(self).start = {k: v.clone() for k, v in model.state_dict().items()}
        return model


def paths(model):
    return [path for path, _ in named_plugins(model)]


def blocks_of(state):
    return {key: value for key, value in state.items() if '.cbam.' in key}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder with four images of one square, their labels, and plain weights."""
    root = tmp_path_factory.mktemp('yolo')
    for name in 'images', 'labels':
        (root / name).mkdir()
    for n in range(4):
        image = Image.new('RGB', (64, 64), (9 * n, 50, 90))
        image.paste((250, 250, 250), (8 + 4 * n, 16, 40 + 4 * n, 48))
        image.save(root / f'images/{n}.png')
        (root / f'labels/{n}.txt').write_text(f'0 {(24 + 4 * n) / 64} 0.5 0.5 0.5\n')
    (root / 'data.yaml').write_text(
        f'path: {root}\ntrain: images\nval: images\nnames: [square, circle]\n'
    )
    return root


@pytest.fixture(scope='module')
def folder(data):
    """The same as the current folder, where ultralytics writes, with plain trained weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(data)
        patch.setattr('ultralytics.cfg.TESTS_RUNNING', False)  # it would write next to its source
        settings.update(runs_dir=str(data / 'runs'))
        plain = YOLO('yolo11n.yaml')
        plain.train(**TRAINING)
        assert paths(plain.model) == []
        shutil.copy(plain.trainer.best, 'plain.pt')
        yield data


@pytest.fixture(scope='module')
def trained(folder):
    """A detector with blocks after an epoch."""
    yolo = YOLO('plain.pt')
    yolo.train(trainer=Trainer, **TRAINING)
    return yolo


def test_a_training_starts_from_all_plain_weights_and_from_the_identity(trained):
    plain = YOLO('plain.pt').model
    assert all(torch.equal(Trainer.start[k], v) for k, v in plain.state_dict().items())
    model = DetectionModel('yolo11n.yaml', nc=2, verbose=False).eval()
    mmattn.insert(model, PLUGINS)
    model.load_state_dict(Trainer.start)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model(images)[0], plain(images)[0], rtol=0, atol=1e-4)  # pixels


def test_the_blocks_are_there_after_a_training_and_have_changed(trained):
    assert paths(trained.model) == PATHS
    after = trained.trainer.model.state_dict()
    changed = {k.split('.cbam')[0] for k, v in after.items() if not v.equal(Trainer.start[k])}
    assert {'model.4', 'model.6', 'model.8'} <= changed
    assert not any(row.identity for row in mmattn.report(trained.model, (64, 64)).rows)


@pytest.mark.parametrize('name', ['best', 'last'])
def test_saved_weights_predict_with_their_blocks(trained, name):
    yolo = YOLO(getattr(trained.trainer, name))
    assert paths(yolo.model) == PATHS
    images, model = torch.rand(1, 3, 64, 64), yolo.model
    with torch.no_grad():
        expected = model(images)[0]
        for _, block in named_plugins(model):  # the result depends on them
            hook = block.register_forward_hook(lambda module, inputs, y: y + y.abs().sqrt())
            assert not torch.equal(model(images)[0], expected)
            hook.remove()
    with mmattn.record(model) as maps:
        (result,) = yolo.predict('images/0.png', imgsz=64, conf=0.001)
    assert list(maps) == PATHS and result.boxes.data.shape[1] == 6
    assert yolo.val(data='data.yaml', imgsz=64, device='cpu', plots=False).box.map >= 0


def test_torchscript_is_the_network_with_blocks(trained):
    yolo, images = YOLO(trained.trainer.best), torch.rand(1, 3, 64, 64)
    expected = yolo.model(images)[0]
    program = torch.jit.load(yolo.export(format='torchscript', imgsz=64))
    torch.testing.assert_close(program(images), expected, rtol=0, atol=1e-3)  # pixels


def test_an_interrupted_training_goes_on_with_its_blocks(folder):
    def interrupt(trainer):
        raise KeyboardInterrupt

    yolo = YOLO('plain.pt')
    yolo.add_callback('on_model_save', interrupt)
    with pytest.raises(KeyboardInterrupt):
        yolo.train(trainer=Trainer, **TRAINING | dict(epochs=2))
    saved = blocks_of(YOLO(yolo.trainer.last).model.state_dict())
    resumed = YOLO(yolo.trainer.last)
    resumed.train(trainer=Trainer, resume=True)
    assert resumed.trainer.start_epoch == 1 and paths(resumed.model) == PATHS
    assert all(torch.equal(Trainer.start[key], value) for key, value in saved.items())


def test_without_the_trainer_blocks_are_lost(trained):
    yolo = YOLO(trained.trainer.best)
    yolo.train(**TRAINING)
    assert paths(yolo.model) == []


def test_a_layer_in_the_yaml_file_loses_plain_weights():
    plain = DetectionModel('yolo11n.yaml', verbose=False)
    cfg = dict(plain.yaml, backbone=[*plain.yaml['backbone'], [-1, 1, 'nn.Identity', []]])
    cfg['head'] = [
        [[k + (k > 10) for k in f] if isinstance(f, list) else f, *rest] for f, *rest in cfg['head']
    ]
    other = DetectionModel(cfg, verbose=False).state_dict()
    missing = {key.split('.')[1] for key in plain.state_dict().keys() - other.keys()}
    assert missing and all(int(number) > 10 for number in missing)


def test_restricted_loading_refuses_blocks(trained):
    torch_safe_load('plain.pt', safe_only=True)
    with pytest.raises(TypeError, match='outside the supported Ultralytics checkpoint format'):
        torch_safe_load(trained.trainer.best, safe_only=True)


def test_fusing_removes_a_block_after_a_norm(folder):
    for at, kept in ('model.5', 1), ('model.5.bn', 0):
        model = YOLO('plain.pt').model
        mmattn.insert(model, [dict(cfg=PLUGINS[0]['cfg'], at=at)])
        assert len(paths(model.fuse(verbose=False))) == kept


def test_a_head_is_refused():
    with pytest.raises(ValueError, match=r'model.23 \(Detect\) returns a tuple, not a map'):
        mmattn.insert(yolo(), [dict(cfg=dict(type='SE'), at='model.23')])


def test_the_page(folder, capsys):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger('ultralytics').addHandler(handler)
    try:
        names = run_page('ultralytics')
    finally:
        logging.getLogger('ultralytics').removeHandler(handler)
    assert any(line.startswith('Transferred 499/529 items') for line in lines)
    printed = capsys.readouterr().out
    assert 'model.4.cbam  CBAM after model.4' in printed and 'torch.Size([1, 256])' in printed
    assert list(names['maps']) == PATHS
    plain, after = YOLO('plain.pt').model.state_dict(), names['yolo'].trainer.model.state_dict()
    frozen = [key for key in plain if key.split('.')[1] in ('4', '6', '8')]  # freeze=10
    assert frozen and all(torch.equal(plain[key], after[key]) for key in frozen)
    assert not any(row.identity for row in mmattn.report(names['yolo'].model, (64, 64)).rows)
