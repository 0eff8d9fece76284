"""Blocks in convolutional networks of Hugging Face transformers, and its page."""

import dataclasses
import re

import pytest
import torch

import mmattn
from mmattn.plugins import named_plugins
from tests.conftest import ROOT
from tests.libraries.checks import CHECKS, Case, close, run_page, trained

transformers = pytest.importorskip('transformers', reason='transformers is missing')
load_file = pytest.importorskip('safetensors.torch').load_file


def resnet():
    cfg = dict(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type='basic')
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**cfg, num_labels=3))


def convnext():
    cfg = transformers.ConvNextConfig(hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 2, 1])
    cfg.num_labels = 3
    return transformers.ConvNextForImageClassification(cfg)


def backbone():
    cfg = dict(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type='basic')
    return transformers.ResNetBackbone(
        transformers.ResNetConfig(**cfg, out_features=['stage1', 'stage2'])
    )


def loss(model, images):
    return model(images, labels=torch.arange(len(images))).loss


CASES = {
    'ResNet': Case(
        build=resnet,
        places=(
            dict(position='after_stage'),
            dict(at='resnet.encoder.stages.*.layers.0.layer.1'),
        ),
        hosts=(
            'resnet.encoder.stages.0.layers.0.layer.1',
            'resnet.encoder.stages.0',
            'resnet.encoder.stages.1.layers.0.layer.1',
            'resnet.encoder.stages.1',
        ),
        channels=(16, 16, 32, 32),
        loss=loss,
    ),
    'ConvNext': Case(
        build=convnext,
        places=(dict(position='after_stage'),),
        hosts=tuple(f'convnext.encoder.stages.{k}' for k in range(4)),
        channels=(16, 32, 32, 64),
        loss=loss,
    ),
    'backbone': Case(
        build=backbone,
        places=(dict(at='encoder.stages.*'),),
        hosts=('encoder.stages.0', 'encoder.stages.1'),
        channels=(16, 32),
    ),
}


@pytest.mark.parametrize('check', CHECKS)
@pytest.mark.parametrize('name', CASES)
def test_network(name, check):
    CHECKS[check](CASES[name])


SAVED = Case(build=resnet, places=(dict(position='after_stage'),), hosts=(), channels=())
PLUGINS = [dict(cfg=dict(type='CBAM', reduction=4, init='identity'), position='after_stage')]


class WithBlocks(transformers.ResNetForImageClassification):
    """The class of the page."""

    def __init__(self, config):
        super().__init__(config)
        mmattn.insert(self, config.plugins)


@pytest.fixture
def saved(tmp_path):
    """A network with blocks that act, saved by the library, and the case that it is of."""
    case = SAVED
    model = trained(case)
    model.config.plugins = PLUGINS
    model.save_pretrained(tmp_path)
    return tmp_path, case, model


def test_a_class_of_ones_own_restores_the_blocks(saved):
    folder, case, model = saved
    loaded = WithBlocks.from_pretrained(folder)
    assert len(list(named_plugins(loaded))) == 2
    close(case.outputs(loaded.eval()), case.outputs(model))
    loaded = WithBlocks.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def test_the_class_of_the_library_loads_the_plain_network(saved):
    folder, case, model = saved
    loaded, info = transformers.ResNetForImageClassification.from_pretrained(
        folder, output_loading_info=True
    )
    close(case.outputs(loaded.eval()), case.outputs(case.plain()))
    assert info['unexpected_keys'] and all('.cbam.' in key for key in info['unexpected_keys'])
    mmattn.insert(loaded, PLUGINS)
    loaded.load_state_dict(load_file(folder / 'model.safetensors'))
    close(case.outputs(loaded), case.outputs(model))


def test_blocks_new_to_from_pretrained_are_no_identity(tmp_path):
    """Which the page says, and the way around it."""
    resnet().save_pretrained(tmp_path)
    config = transformers.ResNetConfig.from_pretrained(tmp_path)
    config.plugins = PLUGINS
    loaded = WithBlocks.from_pretrained(tmp_path, config=config)
    assert not any(row.identity for row in mmattn.report(loaded, (64, 64)).rows)
    loaded = transformers.ResNetForImageClassification.from_pretrained(tmp_path)
    mmattn.insert(loaded, PLUGINS)
    assert all(row.identity for row in mmattn.report(loaded, (64, 64)).rows)


def test_layers_with_tokens_are_refused():
    cfg = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = transformers.ViTModel(transformers.ViTConfig(**cfg, image_size=32, patch_size=8))
    with pytest.raises(ValueError, match=r'ViTLayer\) returns a tensor'):
        path = next(n for n, m in model.named_modules() if type(m).__name__ == 'ViTLayer')
        mmattn.insert(model, [dict(cfg=dict(type='SE'), at=path)])


def test_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_page('transformers')
    assert len(list(named_plugins(names['model']))) == 2
    printed = capsys.readouterr().out
    assert 'CBAM after resnet.encoder.stages.1' in printed
    assert 'torch.Size([1, 1, 8, 8])' in printed


def test_arguments_of_the_trainer_that_the_documents_name():
    page = (ROOT / 'docs' / 'coming_from.md').read_text(encoding='utf-8')
    table = page[page.index('| `TrainingArguments` |') :].splitlines()[2:]
    named = [re.match(r'\| `(\w+)`', line)[1] for line in table if line.startswith('|')]
    named += ['num_train_epochs', 'warmup_steps']
    known = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    assert len(named) > 20 and set(named) <= known
