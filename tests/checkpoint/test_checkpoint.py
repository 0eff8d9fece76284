import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmattn.checkpoint.load import load_weights
from mmattn.checkpoint.read import read_checkpoint
from mmattn.errors import CheckpointError


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path):
    marker = tmp_path / 'executed'
    torch.save(dict(state_dict={}, meta=Payload(marker)), tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match=r'plain values \(\w+.mkdir\): it is refused'):
        read_checkpoint(tmp_path / 'bad.pth')
    assert not marker.exists()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('content', [b'', b'<html></html>', b'PK\x03\x04' + bytes(500)])
def test_garbage_is_named(tmp_path, suffix, content):
    path = tmp_path / f'a{suffix}'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf'{path.name} is damaged or is no checkpoint'):
        read_checkpoint(path)


@pytest.mark.parametrize('keep', [0.1, 0.5, 0.9, 0.99])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=nn.Linear(50, 50).state_dict()), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CheckpointError, match='is damaged'):
        read_checkpoint(path)


def test_missing_file_lists_what_is_there(tmp_path):
    torch.save({}, tmp_path / 'iter_4.pth')
    with pytest.raises(CheckpointError, match=r'best.pth does not exist. .* has: iter_4.pth'):
        read_checkpoint(tmp_path / 'best.pth')


def test_every_form_of_weights_reads(tmp_path):
    weights = nn.Linear(3, 2).state_dict()
    torch.save(weights, tmp_path / 'bare.pth')
    torch.save(dict(state_dict=weights, meta=dict(iter=3)), tmp_path / 'full.pth')
    save_file(weights, tmp_path / 'safe.safetensors')
    for name in 'bare.pth', 'full.pth', 'safe.safetensors':
        model = nn.Linear(3, 2)
        load_weights(model, read_checkpoint(tmp_path / name)['state_dict'], name)
        assert torch.equal(model.weight, weights['weight'])


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda w: {f'x.{k}': v for k, v in w.items()},
            'of another model: none of its 2 keys match',
        ),
        (lambda w: {}, 'of another model'),
        (
            lambda w: dict(w, weight=w['weight'][:1]),
            r'1 of another shape: weight \(1, 3\), model \(2, 3\)',
        ),
        (lambda w: dict(weight=w['weight']), '1 missing: bias'),
        (lambda w: dict(w, more=w['bias']), '1 left over: more'),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(change, message):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, change(other.state_dict()), 'a.pth')
    assert torch.equal(model.weight, before)


def test_the_prefix_of_a_distributed_run_is_dropped():
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    load_weights(model, {f'module.{k}': v for k, v in other.state_dict().items()}, 'a.pth')
    assert torch.equal(model.weight, other.weight)
