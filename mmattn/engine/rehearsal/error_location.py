"""Finding the module or the pipeline that an error comes from, and its key in the config."""

import re
from collections.abc import Iterator

import torch
from torch import nn

from mmattn.config.leaves import dataset_leaves

_CHANNELS = re.compile(r'to have (\d+) channels, but got (\d+) channels')
_FIELDS = {
    'bboxes': 'with_bbox=True',
    'masks': 'with_mask=True',
    'gt_sem_seg': 'with_seg=True',
}
_META = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')


def module_of(error: Exception, model: nn.Module) -> str:
    """Dotted name of the innermost module that an error comes from; '' if there is none."""
    names = {id(module): name for name, module in model.named_modules()}
    called = [names.get(id(frame.f_locals.get('self')), '') for frame in _frames(error)]
    return next((name for name in reversed(called) if name), '')


def key_of(module: str, cfg: dict) -> tuple[str, dict]:
    """Key and value of the innermost dict of a network's config that a module is built from.

    Args:
        module: dotted name of the module.
        cfg: config of the network.
    """
    key, value, innermost = 'model', cfg, ('model', cfg)
    for name in module.split('.'):
        in_dict = isinstance(value, dict) and name in value
        in_list = isinstance(value, list | tuple) and name.isdigit() and int(name) < len(value)
        if not in_dict and not in_list:
            break
        value = value[name] if in_dict else value[int(name)]
        key += f'.{name}' if in_dict else f'[{name}]'
        if isinstance(value, dict):
            innermost = key, value
    return innermost


def channels_remedy(error: Exception, model: nn.Module, cfg: dict) -> str:
    """The right `in_channels` if a module got another number of channels; else ''."""
    counts = _CHANNELS.search(str(error))
    key, module_cfg = key_of(module_of(error, model), cfg)
    in_channels = module_cfg.get('in_channels')
    if not counts or in_channels is None:
        return ''
    expected, actual = map(int, counts.groups())
    modules = dict(model.named_modules())
    module = modules.get(re.sub(r'\[(\d+)\]', r'.\1', key).removeprefix('model.'))
    channels = next(_input_channels(error, module), [])
    if isinstance(in_channels, int) and in_channels == expected and actual in channels:
        return f' Set {key}.in_channels={actual}, as its input has.'
    if isinstance(in_channels, list | tuple) and expected in in_channels:
        if isinstance(module_cfg.get('in_index'), list | tuple):
            indices, count = module_cfg['in_index'], len(channels)
            channels = [channels[i] for i in indices if -count <= i < count]
        if len(channels) == len(in_channels):
            return f' Set {key}.in_channels={channels}, as its input has.'
    return ''


def sample_remedy(reason: str, loader: str, cfg: dict) -> str:
    """What to change in a pipeline, if a sample lacks a field that is used; else ''.

    Args:
        reason: type and message of the error.
        loader: key of the data loader, such as 'train_dataloader'.
        cfg: the whole config.
    """
    dataset = (cfg.get(loader) or {}).get('dataset')
    steps = next(dataset_leaves(dataset), {}).get('pipeline') if dataset else None
    names = re.findall(r"'(\w+)'", reason)
    if not steps or not names:
        return ''
    seg = 'decode_head' in cfg['model']
    transforms = {str(s['type']).split('.')[-1]: s for s in steps if isinstance(s, dict)}
    pack = next((name for name in transforms if name.startswith('Pack')), '')
    name, pipeline = names[-1], f'the pipeline of {loader}'
    if name == 'inputs' and not pack and steps is dataset.get('pipeline'):
        return f' Let {pipeline} end in {"PackSegInputs" if seg else "PackDetInputs"}.'
    if name in _FIELDS and 'LoadAnnotations' not in transforms:
        return f' Add LoadAnnotations{"" if seg else f" with {_FIELDS[name]}"} to {pipeline}.'
    if name in _FIELDS and not seg and not transforms['LoadAnnotations'].get(_FIELDS[name][:-5]):
        return f' Set {_FIELDS[name]} in LoadAnnotations of {pipeline}.'
    meta = transforms[pack].get('meta_keys') if pack else None
    if name in _META and meta and name not in meta:
        return f' Add {name!r} to the meta_keys of {pack} in {pipeline}.'
    return ''


def _frames(error: Exception) -> Iterator:
    traceback = error.__traceback__
    while traceback:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _input_channels(error: Exception, module: nn.Module | None) -> Iterator[list[int]]:
    """Channels of the feature maps that a module got as an argument, of each such argument."""
    for frame in _frames(error):
        if module is None or frame.f_locals.get('self') is not module:
            continue
        for name in frame.f_code.co_varnames[1 : frame.f_code.co_argcount]:
            value = frame.f_locals.get(name)
            value = [value] if isinstance(value, torch.Tensor) else value
            if isinstance(value, list | tuple) and value and all(map(_is_feature_map, value)):
                yield [x.shape[1] for x in value]


def _is_feature_map(value) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4
