"""Weights of plain networks in networks with attention: what fits is said, what does not is refused."""

import os
import re
import shutil
from http.client import IncompleteRead
from pathlib import Path

import pytest
import torch
from mmdet.models import ResNet
from mmengine.runner import load_checkpoint as mmengine_load
from torch import nn

from mmattn import insert
from mmattn.checkpoint import download
from mmattn.checkpoint.download import fetch
from mmattn.checkpoint.load import block_forms, load_initial_weights
from mmattn.checkpoint.read import read_checkpoint
from mmattn.engine.network import build_model
from mmattn.engine.test import test as evaluate
from mmattn.engine.train import train
from mmattn.errors import CheckpointError, UsageError
from mmattn.zoo.publish import publish
from tests.conftest import ROOT, randomise, tiny_options

NARROW = dict(base_channels=8, stem_channels=8)
CONFIG = ROOT / 'configs' / 'mask_rcnn_r18_street.py'
SE = dict(cfg=dict(type='mmattn.SE', reduction=4, init='identity'), position='before_add')
SK = dict(cfg=dict(type='mmattn.SKConv2d', init='identity'), replace='layer4.*.conv2')


def resnet(*plugins):
    """A narrow ResNet-18, drawn at random."""
    model = ResNet(18, norm_eval=False, **NARROW)
    insert(model, plugins)
    model.eval()
    return randomise(model)


def maps(model):
    """Of one image, which all networks get."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 3, 96, 128, generator=generator, dtype=torch.float64)
    model.double().eval()
    with torch.no_grad():
        return model(x)


def equal(found, wanted):
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def unchanged(model, before):
    after = model.state_dict()
    return all(torch.equal(after[key], value) for key, value in before.items())


def copied(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


class Detector(nn.Module):
    """What has a backbone, and an `fc` of its own."""

    def __init__(self, *plugins):
        super().__init__()
        self.backbone = nn.Sequential()
        self.backbone.conv = nn.Conv2d(3, 8, 3)
        self.backbone.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 2)
        insert(self, plugins)
        randomise(self)


# -- what is said ---------------------------------------------------------------------------------


def test_it_says_how_many_tensors_came_from_where():
    plain, other = resnet(), resnet()
    assert load_initial_weights(other, plain.state_dict(), 'a.pth') == (
        f'{len(plain.state_dict())} tensors loaded from a.pth'
    )
    assert equal(maps(other), maps(plain))


def test_parameters_of_plugins_are_new_and_keep_their_start():
    plain, model = resnet(), resnet(dict(SE, stages=(False, False, True, True)))
    before = copied(model)
    said = load_initial_weights(model, plain.state_dict(), 'a.pth')
    count, new = len(plain.state_dict()), len(model.state_dict()) - len(plain.state_dict())
    assert re.fullmatch(
        rf'{count} tensors loaded from a.pth; new: {new} of 4 (blocks|plugins) \((.+)\)', said
    )
    assert 'layer3.0.se, layer3.1.se, layer4.0.se, layer4.1.se' in said
    own = {key: value for key, value in before.items() if '.se.' in key}
    assert len(own) == new == 16
    assert unchanged(model, own) and unchanged(model, plain.state_dict())


def test_many_paths_are_cut_short():
    said = load_initial_weights(resnet(SE), resnet().state_dict(), 'a.pth')
    assert re.search(r'new: 32 of 8 \w+ \(layer1.0.se, .*, layer3.0.se and 3 more\)$', said)


def test_a_block_inside_a_block_is_counted_once():
    plugin = dict(cfg=dict(type='mmattn.DualAttention'), at='layer4')
    said = load_initial_weights(resnet(plugin), resnet().state_dict(), 'a.pth')
    assert re.search(r'new: \d+ of 1 \w+ \(layer4.dual_attention\)$', said)


def test_a_checkpoint_with_the_plugins_loads_as_it_is():
    model, other = resnet(SE, SK), resnet(SE, SK)
    said = load_initial_weights(other, model.state_dict(), 'a.pth', forms=block_forms(model))
    assert said == f'{len(model.state_dict())} tensors loaded from a.pth'
    assert equal(maps(other), maps(model))


def test_the_prefix_of_a_distributed_run_is_dropped():
    plain, model = resnet(), resnet(SE)
    weights = {f'module.{key}': value for key, value in plain.state_dict().items()}
    assert 'new: 32 of 8' in load_initial_weights(model, weights, 'a.pth')
    assert unchanged(model, plain.state_dict())


# -- what does not fit ----------------------------------------------------------------------------

WRONG = [
    (
        lambda w: {k: v for k, v in w.items() if k != 'layer2.0.conv1.weight'},
        '1 missing: layer2.0.conv1.weight',
    ),
    (lambda w: w | {'neck.weight': w['bn1.weight']}, '1 left over: neck.weight'),
    (
        lambda w: w | {'bn1.weight': torch.ones(3), 'bn1.bias': torch.ones(4)},
        r'2 of another shape: bn1.weight \(3,\), model \(8,\), bn1.bias \(4,\), model \(8,\)',
    ),
    (
        lambda w: {k: v for k, v in w.items() if 'layer4' not in k},
        r'missing: layer4.* and \d+ more',
    ),
]


@pytest.mark.parametrize('change, message', WRONG)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(change, message):
    model, weights = resnet(SE), change(resnet().state_dict())
    before = copied(model)
    with pytest.raises(
        CheckpointError, match=rf'a.pth does not fit the model: .*{message}.*--init-from'
    ):
        load_initial_weights(model, weights, 'a.pth')
    assert unchanged(model, before)


@pytest.mark.parametrize('change, message', WRONG)
def test_partly_what_fits_is_loaded_and_the_rest_is_said(change, message):
    model, weights = resnet(SE), change(resnet().state_dict())
    before = copied(model)
    said = load_initial_weights(model, weights, 'a.pth', partial=True)
    assert re.search(message, said)
    fits = {k: v for k, v in weights.items() if k in before and before[k].shape == v.shape}
    assert f'{len(fits)} tensors loaded from a.pth' in said
    assert unchanged(model, fits)
    assert unchanged(model, {key: value for key, value in before.items() if key not in fits})


@pytest.mark.parametrize('partial', [False, True])
@pytest.mark.parametrize('change', [lambda w: {}, lambda w: {f'x.{k}': v for k, v in w.items()}])
def test_weights_of_another_network_are_refused(change, partial):
    model = resnet(SE)
    before = copied(model)
    with pytest.raises(CheckpointError, match='a.pth is of another model: none of its .* keys'):
        load_initial_weights(model, change(resnet().state_dict()), 'a.pth', partial=partial)
    assert unchanged(model, before)


def test_partly_nothing_but_other_shapes_is_refused():
    weights = {key: value[None] for key, value in resnet().state_dict().items()}
    with pytest.raises(CheckpointError, match='a.pth does not fit the model: .* of another shape'):
        load_initial_weights(resnet(), weights, 'a.pth', partial=True)


def test_the_classifier_of_imagenet_is_left_for_a_backbone():
    plain, model = resnet(), resnet(SE)
    for name in 'fc', 'head.fc', 'classifier':
        heads = {f'{name}.weight': torch.ones(5, 2), f'{name}.bias': torch.ones(5)}
        said = load_initial_weights(model, plain.state_dict() | heads, 'a.pth')
        assert said.endswith(f'left: the classifier ({name}.weight, {name}.bias)')


def test_a_detector_leaves_no_classifier():
    plugin = dict(cfg=dict(type='mmattn.SE', reduction=2), at='backbone.conv')
    model, plain = Detector(plugin), Detector()
    assert 'new: 4 of 1' in load_initial_weights(model, plain.state_dict(), 'a.pth')
    assert unchanged(model, plain.state_dict())
    more = plain.state_dict() | {'fc2.weight': torch.ones(2), 'head.weight': torch.ones(2)}
    with pytest.raises(CheckpointError, match='2 left over: fc2.weight, head.weight'):
        load_initial_weights(model, more, 'a.pth')
    fewer = {key: value for key, value in plain.state_dict().items() if not key.startswith('fc')}
    with pytest.raises(CheckpointError, match='2 missing: fc.weight, fc.bias'):
        load_initial_weights(model, fewer, 'a.pth')


def test_old_files_have_no_count_of_batches():
    plain, model = resnet(), resnet(SE)
    weights = {k: v for k, v in plain.state_dict().items() if 'num_batches' not in k}
    assert len(weights) < len(plain.state_dict())
    said = load_initial_weights(model, weights, 'a.pth')
    assert f'{len(weights)} tensors loaded' in said and 'missing' not in said
    assert unchanged(model, weights)


# -- replaced convolutions ------------------------------------------------------------------------


def test_selective_kernels_inherit_the_convolution():
    plain, model = resnet(), resnet(SK)
    with torch.no_grad():
        for block in model.layer4:
            block.conv2.rho.scale.zero_()
    said = load_initial_weights(model, plain.state_dict(), 'a.pth')
    assert re.search(r'new: \d+ of 2 \w+ \(layer4.0.conv2, layer4.1.conv2\)', said)
    assert f'{len(plain.state_dict())} tensors loaded' in said
    assert equal(maps(model), maps(plain))


def test_selective_kernels_of_the_paper_do_not():
    cfg = dict(type='mmattn.SKConv2d', groups=4)
    plain, model = resnet(), resnet(dict(cfg=cfg, replace='layer4.*.conv2'))
    before = copied(model)
    said = load_initial_weights(model, plain.state_dict(), 'a.pth')
    assert f'{len(plain.state_dict()) - 2} tensors loaded' in said and 'left over' not in said
    assert unchanged(model, {k: v for k, v in before.items() if '.conv2.convs' in k})


@pytest.mark.parametrize('kind, times', [('DCN', 1), ('DCNv2', 2)])
def test_deformable_convolutions_inherit_the_convolution(kind, times):
    pytest.importorskip('mmcv._ext', reason='mmcv has no compiled operators')
    dcn = dict(cfg=dict(type=kind, deform_groups=1), replace='layer4.*.conv2')
    plain, model = resnet(), resnet(dcn)
    with torch.no_grad():
        for block in model.layer4:
            block.conv2.conv_offset.weight.zero_(), block.conv2.conv_offset.bias.zero_()
    load_initial_weights(model, plain.state_dict(), 'a.pth')
    for block, other in zip(model.layer4, plain.layer4):
        assert torch.equal(block.conv2.weight, times * other.conv2.weight)
    for found, wanted in zip(maps(model), maps(plain), strict=True):
        assert (found - wanted).abs().max() <= 1e-9 * wanted.abs().max()


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_a_deformable_network_loads_its_own_checkpoint_as_it_is(kind):
    pytest.importorskip('mmcv._ext', reason='mmcv has no compiled operators')
    dcn = dict(cfg=dict(type=kind, deform_groups=1), replace='layer4.*.conv2')
    trained, model = resnet(dcn), resnet(dcn, SE)
    assert 'new: 32 of 8' in load_initial_weights(model, trained.state_dict(), 'a.pth')
    assert unchanged(model, trained.state_dict())


def test_a_block_behind_a_deformable_convolution_is_new_and_the_convolution_is_not():
    pytest.importorskip('mmcv._ext', reason='mmcv has no compiled operators')
    dcn = dict(cfg=dict(type='DCNv2', deform_groups=1), replace='layer4.*.conv2')
    behind = dict(cfg=dict(type='mmattn.SE', reduction=4), at='layer4.0.conv2')
    trained, model = resnet(dcn), resnet(dcn, behind)
    load_initial_weights(model, trained.state_dict(), 'a.pth')
    assert unchanged(model, trained.state_dict())


def test_a_convolution_of_another_shape_is_not_inherited():
    model, weights = resnet(SK), resnet().state_dict()
    weights['layer4.0.conv2.weight'] = torch.ones(64, 64, 1, 1)
    before = copied(model)
    with pytest.raises(
        CheckpointError, match=r'1 of another shape: layer4.0.conv2.*\(64, 64, 1, 1\)'
    ):
        load_initial_weights(model, weights, 'a.pth')
    assert unchanged(model, before)


def test_a_replaced_convolution_that_the_weights_lack_is_missing():
    model, weights = resnet(SK), resnet().state_dict()
    weights = {key: value for key, value in weights.items() if key != 'layer4.1.conv2.weight'}
    before = copied(model)
    with pytest.raises(CheckpointError, match=r'1 missing: layer4.1.conv2.convs.0.0.weight'):
        load_initial_weights(model, weights, 'a.pth')
    assert unchanged(model, before)


@pytest.mark.parametrize('kind', ['SKConv2d', 'DCNv2'])
def test_other_loaders_give_replacements_the_plain_weights_too(kind, tmp_path):
    if kind == 'DCNv2':
        pytest.importorskip('mmcv._ext', reason='mmcv has no compiled operators')
    plugin = SK if kind == 'SKConv2d' else dict(cfg=dict(type='DCNv2'), replace='layer4.*.conv2')
    plain, ours, twin = resnet(), resnet(plugin), resnet(plugin)
    load_initial_weights(ours, plain.state_dict(), 'a.pth')
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    mmengine_load(twin, str(tmp_path / 'plain.pth'), map_location='cpu')
    other = resnet(plugin)
    other.load_state_dict(plain.state_dict(), strict=False)
    to = 'convs.0.0.weight' if kind == 'SKConv2d' else 'weight'
    for k in range(2):
        wanted = ours.layer4[k].conv2.state_dict()[to]
        assert not torch.equal(resnet(plugin).layer4[k].conv2.state_dict()[to], wanted)
        assert torch.equal(twin.layer4[k].conv2.state_dict()[to], wanted)
        assert torch.equal(other.layer4[k].conv2.state_dict()[to], wanted)
    copy = resnet(plugin)
    copy.load_state_dict(ours.state_dict())  # its own weights as they are
    assert unchanged(copy, ours.state_dict())


def test_a_date_in_a_name_is_no_hash(net):
    fetch('https://x.org/mask_rcnn-20200804.pth')
    fetch('https://x.org/mask_rcnn_20200804-0676ba61.pth')
    assert [digits for _, digits in net] == [None, '0676ba61']


def test_weights_of_the_other_form_are_refused():
    paper = dict(SE, cfg=dict(SE['cfg'], init='paper'))
    trained, model = resnet(paper), resnet(SE)
    before = copied(model)
    for partial in False, True:
        with pytest.raises(
            CheckpointError, match="a.pth .*layer1.0.se was trained with init='paper'"
        ):
            load_initial_weights(
                model, trained.state_dict(), 'a.pth', forms=block_forms(trained), partial=partial
            )
    assert unchanged(model, before)
    load_initial_weights(model, resnet(SE).state_dict(), 'a.pth', forms=block_forms(model))


# -- addresses ------------------------------------------------------------------------------------


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A network that gives one local file for every address, and notes what was asked for."""
    asked, source = [], tmp_path / 'source.pth'
    torch.save(dict(weight=torch.ones(2)), source)

    def fake(url, to, digits):
        asked.append((url, digits or None))
        shutil.copy(source, to)

    monkeypatch.setattr(download, '_download', fake)
    monkeypatch.setattr(download, 'sha256', lambda path: path.stem.split('-')[-1])
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return asked


def test_a_path_is_no_address(net, tmp_path):
    assert fetch('a/b.pth') == Path('a/b.pth') and fetch(tmp_path / 'c.pth') == tmp_path / 'c.pth'
    assert net == []


@pytest.mark.parametrize(
    'address, url, digits',
    [
        ('https://x.org/a/b.pth', 'https://x.org/a/b.pth', None),
        ('https://x.org/b-0123abcd.pth?raw=1', 'https://x.org/b-0123abcd.pth?raw=1', '0123abcd'),
        (
            'torchvision://resnet50',
            'https://download.pytorch.org/models/resnet50-0676ba61.pth',
            '0676ba61',
        ),
    ],
)
def test_an_address_is_downloaded_once(net, address, url, digits):
    path = fetch(address)
    assert path.parent.name == 'checkpoints' and path.name in url
    assert net == [(url, digits)]
    assert fetch(address) == path and len(net) == 1
    assert torch.equal(read_checkpoint(address)['state_dict']['weight'], torch.ones(2))
    assert len(net) == 1


@pytest.mark.parametrize('scheme', ['open-mmlab', 'openmmlab'])
def test_names_of_openmmlab_are_known(net, scheme):
    path = fetch(f'{scheme}://detectron2/resnet50_caffe')
    ((url, digits),) = net
    assert url.startswith('https://') and url.endswith(f'/{path.name}')
    assert re.fullmatch(r'resnet50_msra-[0-9a-f]{8}\.pth', path.name)
    assert path.stem.endswith(f'-{digits}')


@pytest.mark.parametrize(
    'address, message',
    [
        (
            'ftp://x.org/a.pth',
            r'ftp://x.org/a.pth: allowed https://, torchvision://, open-mmlab://',
        ),
        (
            'torchvision://resnet5',
            'torchvision://resnet5: no such name is known. Did you mean resnet',
        ),
        ('torchvision://zzzzzzz', r'torchvision://zzzzzzz: no such name is known\.$'),
        ('open-mmlab://detectron/resnet50_cafe', 'no such name .* detectron/resnet50_caffe'),
        ('torchvision://shufflenetv2_x1.5', 'torchvision://shufflenetv2_x1.5'),  # named, not given
    ],
)
def test_an_unknown_address_is_refused_with_what_is_near(net, address, message):
    with pytest.raises(CheckpointError, match=message):
        fetch(address)
    assert net == []


@pytest.mark.parametrize('error', [OSError('no route to host'), IncompleteRead(b'')])
def test_a_download_that_fails_says_so(monkeypatch, tmp_path, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(download, '_download', fail)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(
        CheckpointError, match='cannot download weights https://x.org/a.pth: .* name the file'
    ):
        fetch('https://x.org/a.pth')


# -- in a run -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def still(street):
    """Options for one step that moves nothing, on tiny data."""
    return tiny_options(street) | {
        'train_dataloader.dataset.pipeline.2.scale': (128, 64),
        'val_dataloader.dataset.pipeline.1.scale': (128, 64),
        'test_dataloader.dataset.pipeline.1.scale': (128, 64),
        'train_cfg.max_iters': 1,
        'default_hooks.checkpoint.interval': 1,
        'optim_wrapper.optimizer.lr': 0.0,
        'model.train_cfg.rpn_proposal.max_per_img': 50,
    }


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    """A file as torchvision has it: a ResNet-18 with a classifier, no counts of batches."""
    torch.manual_seed(11)
    model = ResNet(18)
    model.init_weights()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.1)
    weights = {k: v for k, v in model.state_dict().items() if 'num_batches' not in k}
    weights |= {'fc.weight': torch.randn(10, 512), 'fc.bias': torch.randn(10)}
    path = tmp_path_factory.mktemp('weights') / 'resnet18.pth'
    torch.save(weights, path)
    return path


def begun(work_dir, **arguments):
    """Weights after a run that moves none, and its log."""
    train(CONFIG, work_dir=work_dir, validate=False, seed=4, **arguments)
    (log,) = work_dir.glob('*/*.log')
    return read_checkpoint(work_dir / 'iter_1.pth'), log.read_text()


def learned(weights):
    """Without what a step changes at any learning rate: the statistics of norms."""
    return {k: v for k, v in weights.items() if 'running' not in k and 'num_batches' not in k}


@pytest.fixture(scope='module')
def cbam(still, imagenet, tmp_path_factory):
    """The folder of a run with CBAM, started from the ImageNet file."""
    work_dir = tmp_path_factory.mktemp('runs') / 'cbam'
    start = {'model.backbone.init_cfg': dict(type='Pretrained', checkpoint=str(imagenet))}
    checkpoint, log = begun(work_dir, attention='cbam', cfg_options=still | start)
    return work_dir, checkpoint, log


def test_a_run_starts_from_pretrained_weights_and_says_so(cbam, imagenet):
    _, checkpoint, log = cbam
    wanted = torch.load(imagenet)
    found = checkpoint['state_dict']
    for key, value in learned(wanted).items():
        if not key.startswith('fc.'):
            assert torch.equal(found[f'backbone.{key}'], value), key
    count = len(wanted) - 2
    assert f'backbone: {count} tensors loaded from {imagenet}; new: ' in log
    assert 'left: the classifier (fc.weight, fc.bias)' in log
    assert re.search(r'new: \d+ of 8 \w+ \(layer1.0.cbam, ', log)


def test_replaced_convolutions_of_a_run_start_from_the_pretrained_ones(still, imagenet, tmp_path):
    start = {'model.backbone.init_cfg': dict(type='Pretrained', checkpoint=str(imagenet))}
    checkpoint, log = begun(tmp_path, attention='sk', cfg_options=still | start)
    wanted, found = torch.load(imagenet), checkpoint['state_dict']
    for k in range(1, 5):
        own = found[f'backbone.layer{k}.1.conv2.convs.0.0.weight']
        assert torch.equal(own, wanted[f'layer{k}.1.conv2.weight'])
    assert f'backbone: {len(wanted) - 2} tensors loaded from {imagenet}; new: ' in log
    assert all(not value.any() for key, value in found.items() if key.endswith('.rho.scale'))


def test_a_part_of_a_checkpoint_is_named_by_its_prefix(still, cbam, tmp_path):
    path = cbam[0] / 'iter_1.pth'
    cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    options = still | {'model.backbone.init_cfg': cfg}
    checkpoint, log = begun(tmp_path, attention='cbam', cfg_options=options)
    wanted = learned(read_checkpoint(path)['state_dict'])
    found = checkpoint['state_dict']
    for key, value in wanted.items():
        if key.startswith('backbone.'):
            assert torch.equal(found[key], value), key
    assert f'loaded from {path}' in log


def test_pretrained_weights_of_another_network_are_refused(still, tmp_path):
    torch.save({'conv9.weight': torch.ones(3)}, tmp_path / 'other.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'other.pth'))
    options = still | {'model.backbone.init_cfg': cfg}
    message = r'other.pth .*another model.* model.backbone.init_cfg.checkpoint=FILE.*init_cfg=None'
    with pytest.raises(CheckpointError, match=message):
        train(CONFIG, work_dir=tmp_path / 'run', validate=False, cfg_options=options)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_pretrained_weights_is_refused_and_does_not_run(still, tmp_path):
    marker = tmp_path / 'executed'
    torch.save(dict(state_dict={}, meta=Payload(marker)), tmp_path / 'bad.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'bad.pth'))
    options = still | {'model.backbone.init_cfg': cfg}
    with pytest.raises(CheckpointError, match='it is refused, as loading it could execute code'):
        train(CONFIG, work_dir=tmp_path / 'run', validate=False, cfg_options=options)
    assert not marker.exists()


@pytest.fixture(scope='module')
def plain(still, tmp_path_factory):
    """The checkpoint of a run without attention."""
    work_dir = tmp_path_factory.mktemp('runs') / 'plain'
    begun(work_dir, cfg_options=still)
    return work_dir / 'iter_1.pth'


def test_load_from_takes_a_plain_detector_into_one_with_attention(still, plain, tmp_path):
    checkpoint, log = begun(
        tmp_path, attention='cbam', cfg_options=still | {'load_from': str(plain)}
    )
    wanted = learned(read_checkpoint(plain)['state_dict'])
    found = checkpoint['state_dict']
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert re.search(rf'tensors loaded from {re.escape(str(plain))}; new: \d+ of 8 ', log)


def test_load_from_refuses_what_does_not_fit_and_init_from_takes_the_rest(still, plain, tmp_path):
    weights = read_checkpoint(plain)['state_dict']
    gone = [key for key in weights if key.startswith('neck.')]
    weights = {key: value for key, value in weights.items() if key not in gone}
    weights['extra.weight'] = torch.ones(2)
    path = tmp_path / 'part.pth'
    torch.save(weights, path)
    message = f'part.pth does not fit the model: {len(gone)} missing: neck.*left over: extra.weight'
    with pytest.raises(CheckpointError, match=f'{message}.*--init-from'):
        begun(tmp_path / 'a', cfg_options=still | {'load_from': str(path)})
    checkpoint, log = begun(tmp_path / 'b', init_from=path, cfg_options=still)
    found = checkpoint['state_dict']
    del weights['extra.weight']
    assert all(torch.equal(found[key], value) for key, value in learned(weights).items())
    assert f'{len(weights)} tensors loaded from {path}; {len(gone)} missing: neck' in log
    assert f'--init-from {path.name}' in checkpoint['meta']['command']


def test_init_from_and_resume_exclude_each_other(tmp_path):
    with pytest.raises(UsageError, match='--resume and --init-from exclude each other'):
        train(CONFIG, work_dir=tmp_path, resume='auto', init_from='a.pth')


def test_what_was_added_is_recorded(cbam):
    meta = cbam[1]['meta']
    assert meta['attention']['names'] == 'cbam' and len(meta['attention']['plugins']) == 1
    assert meta['blocks'] == {
        f'backbone.layer{k}.{n}.cbam': 'identity' for k in range(1, 5) for n in (0, 1)
    }
    assert '--attention cbam' in meta['command']


def test_a_checkpoint_is_tested_and_published_without_naming_its_attention(cbam, still, tmp_path):
    path = cbam[0] / 'iter_1.pth'
    for attention in None, 'cbam':
        metrics = evaluate(CONFIG, path, work_dir=tmp_path, attention=attention, cfg_options=still)
        assert 'coco/bbox_mAP' in metrics
    model, _ = build_model(CONFIG, path)
    assert unchanged(model, cbam[1]['state_dict'])
    files = publish(CONFIG, path, tmp_path / 'out')
    assert files['pth'].name.startswith('mask_rcnn_r18_street_cbam-')
    for kind in 'pth', 'safetensors':
        content = read_checkpoint(files[kind])
        assert content['meta']['attention']['names'] == 'cbam'
        model, _ = build_model(CONFIG, files[kind])
        assert unchanged(model, cbam[1]['state_dict'])


@pytest.mark.parametrize('other', ['se', 'cbam,gc', 'none'])
def test_another_attention_than_the_checkpoints_is_refused(cbam, still, tmp_path, other):
    path = cbam[0] / 'iter_1.pth'
    with pytest.raises(UsageError, match=f'--attention {other}: .* was trained with cbam. Leave'):
        evaluate(CONFIG, path, work_dir=tmp_path, attention=other, cfg_options=still)
    with pytest.raises(UsageError, match='was trained with cbam'):
        train(CONFIG, work_dir=tmp_path, resume=str(path), attention=other, cfg_options=still)


def test_attention_on_a_plain_checkpoint_is_refused_by_its_weights(plain, still, tmp_path):
    with pytest.raises(
        CheckpointError, match=r'does not fit the model: \d+ missing: backbone.*cbam'
    ):
        evaluate(CONFIG, plain, work_dir=tmp_path, attention='cbam', cfg_options=still)


def test_a_run_that_goes_on_has_the_attention_it_began_with(cbam, still, tmp_path):
    shutil.copytree(cbam[0], tmp_path / 'run')
    options = still | {'train_cfg.max_iters': 2}
    train(CONFIG, work_dir=tmp_path / 'run', resume='latest', validate=False, cfg_options=options)
    after = read_checkpoint(tmp_path / 'run' / 'iter_2.pth')
    assert after['meta']['attention'] == cbam[1]['meta']['attention']
    assert after['state_dict'].keys() == cbam[1]['state_dict'].keys()
    before = learned(cbam[1]['state_dict'])
    assert all(torch.equal(after['state_dict'][key], value) for key, value in before.items())
