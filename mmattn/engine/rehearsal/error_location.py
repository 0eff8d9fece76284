"""Where in the network and in the samples an error lies, and which key of the config that is."""

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
    """Dotted name of the innermost part of the network that an error comes from; '' if of none."""
    names = {id(module): name for name, module in model.named_modules()}
    found = [names.get(id(frame.f_locals.get('self')), '') for frame in _frames(error)]
    return next((name for name in reversed(found) if name), '')


def key_of(module: str, cfg: dict) -> tuple[str, dict]:
    """The innermost dict of a network's config that a part is built from, with its key."""
    key, value, found = 'model', cfg, ('model', cfg)
    for name in module.split('.'):
        inside = isinstance(value, dict) and name in value
        listed = isinstance(value, list | tuple) and name.isdigit() and int(name) < len(value)
        if not inside and not listed:
            break
        value = value[name] if inside else value[int(name)]
        key += f'.{name}' if inside else f'[{name}]'
        if isinstance(value, dict):
            found = key, value
    return found


def channels_remedy(error: Exception, model: nn.Module, cfg: dict) -> str:
    """What `in_channels` should be, where a part says another number than the maps have."""
    counts = _CHANNELS.search(str(error))
    key, part = key_of(module_of(error, model), cfg)
    said = part.get('in_channels')
    if not counts or said is None:
        return ''
    wanted, got = map(int, counts.groups())
    names = dict(model.named_modules())
    owner = names.get(re.sub(r'\[(\d+)\]', r'.\1', key).removeprefix('model.'))
    given = next(_maps(error, owner), [])
    if isinstance(said, int) and said == wanted and got in given:
        return f' Set {key}.in_channels={got}, as its input has.'
    if isinstance(said, list | tuple) and wanted in said:
        if isinstance(part.get('in_index'), list | tuple):
            given = [given[i] for i in part['in_index'] if -len(given) <= i < len(given)]
        if len(given) == len(said):
            return f' Set {key}.in_channels={given}, as its input has.'
    return ''


def sample_remedy(reason: str, loader: str, cfg: dict) -> str:
    """What a pipeline should do, where a sample has not what is asked of it.

    Args:
        reason: the error with its text.
        loader: key of the data loader.
        cfg: the whole config.
    """
    dataset = (cfg.get(loader) or {}).get('dataset')
    steps = next(dataset_leaves(dataset), {}).get('pipeline') if dataset else None
    names = re.findall(r"'(\w+)'", reason)
    if not steps or not names:
        return ''
    seg = 'decode_head' in cfg['model']
    kinds = {str(step['type']).split('.')[-1]: step for step in steps if isinstance(step, dict)}
    pack = next((kind for kind in kinds if kind.startswith('Pack')), '')
    name, end = names[-1], f' the pipeline of {loader}'
    if name == 'inputs' and not pack and steps is dataset.get('pipeline'):
        return f' Let{end} end in {"PackSegInputs" if seg else "PackDetInputs"}.'
    if name in _FIELDS and 'LoadAnnotations' not in kinds:
        return f' Add LoadAnnotations{"" if seg else f" with {_FIELDS[name]}"} to{end}.'
    if name in _FIELDS and not seg and not kinds['LoadAnnotations'].get(_FIELDS[name][:-5]):
        return f' Set {_FIELDS[name]} in LoadAnnotations of{end}.'
    meta = kinds[pack].get('meta_keys') if pack else None
    if name in _META and meta and name not in meta:
        return f' Add {name!r} to the meta_keys of {pack} in{end}.'
    return ''


def _frames(error: Exception) -> Iterator:
    at = error.__traceback__
    while at:
        yield at.tb_frame
        at = at.tb_next


def _maps(error: Exception, owner: nn.Module | None) -> Iterator[list[int]]:
    """Channels of the maps that a part of the network was given."""
    for frame in _frames(error):
        if owner is None or frame.f_locals.get('self') is not owner:
            continue
        for name in frame.f_code.co_varnames[1 : frame.f_code.co_argcount]:
            value = frame.f_locals.get(name)
            value = [value] if isinstance(value, torch.Tensor) else value
            if isinstance(value, list | tuple) and value and all(map(_is_map, value)):
                yield [x.shape[1] for x in value]


def _is_map(value) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4
