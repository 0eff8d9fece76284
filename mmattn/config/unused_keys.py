"""Unused keys of a config: each is rejected, with the nearest key that is used."""

import inspect
import re
from collections.abc import Callable

from mmengine.runner import LogProcessor, Runner
from mmengine.utils.dl_utils import set_multi_processing
from torch.utils.data import DataLoader

from mmattn.errors import UsageError
from mmattn.plugins.find_block import find_block
from mmattn.plugins.inserter import PLUGIN_KEYS
from mmattn.text import nearest

from .class_keys import arguments, keys_in_sources, module_keys
from .registered import find_class, nested_classes, suggest_type
from .runner_keys import read_from_config

# Dicts whose `type` is a function of torch or mmcv instead of a registered class, and these.
UNREGISTERED = ('clip_grad', '.nms', '.roi_layer')
FUNCTIONS = ('norm', 'value', 'nms', 'soft_nms', 'RoIAlign', 'RoIPool')
# Keys of dicts without `type`, by the key of the dict.
_DATALOADER = set(inspect.signature(DataLoader.__init__).parameters) - {'self'} | (
    read_from_config(Runner, 'dataloader_cfg')
)
_PLAIN_DICTS = {
    'train_dataloader': _DATALOADER,
    'val_dataloader': _DATALOADER,
    'test_dataloader': _DATALOADER,
    'env_cfg': read_from_config(Runner, 'env_cfg'),
    'mp_cfg': set(inspect.signature(set_multi_processing).parameters) - {'distributed'},
    'randomness': set(inspect.signature(Runner.set_randomness).parameters) - {'self'},
    'auto_scale_lr': read_from_config(Runner, 'auto_scale_lr'),
    'log_processor': set(inspect.signature(LogProcessor.__init__).parameters) - {'self'},
    'clip_grad': {'max_norm', 'norm_type', 'error_if_nonfinite', 'foreach', 'clip_value', 'type'},
    'paramwise_cfg': {
        'custom_keys',
        'bias_lr_mult',
        'bias_decay_mult',
        'norm_decay_mult',
        'flat_decay_mult',
        'dwconv_decay_mult',
        'dcn_offset_lr_mult',
        'bypass_duplicate',
    },
    'plugins[]': set(PLUGIN_KEYS),
    'data_prefix': {'img', 'img_path', 'seg_map_path', 'depth_map_path', 'seg', 'sub_data_root'},
}
# Any class of a network may use the keys of these dicts, and functions of mmdet use those below.
# Recipes have them for heads without a use for them, too.
_NETWORK_DICTS = 'train_cfg', 'test_cfg', 'rpn', 'rpn_proposal', 'rcnn'
_NETWORK_KEYS = {
    *('assigner', 'sampler', 'allowed_border', 'pos_weight', 'debug', 'mask_size'),
    *('nms_pre', 'min_bbox_size', 'score_thr', 'nms', 'max_per_img', 'mask_thr_binary'),
}
# Keys that the builders remove from a dict before the class is called.
_BUILDER_KEYS = {'type', '_scope_', 'priority', 'requires_grad', 'convert_to_iter_based', 'postfix'}
_OPTIM_WRAPPER = {'constructor', 'paramwise_cfg'}  # the same for groups of parameters
_MULTIPLIERS = {'lr_mult', 'decay_mult'}
# Arguments that another library takes, by class.
_FOREIGN = {'Albu': ('transforms', 'bbox_params'), 'Detectron2Wrapper': ('detector',)}


def check_keys(cfg: dict, scope: str, allow: Callable[[str], bool] = lambda key: False) -> list:
    """Reject every key of a config that nothing uses.

    Keys of a dict with a `type` must be arguments of its class, or keys that the classes around it
    take out by name, such as `upsample_cfg.pop('scale_factor')`. Dicts without a `type` have
    known keys; those of `train_cfg` and `test_cfg` of a network may be used by all its classes.

    Args:
        cfg: config whose top-level keys are all used by mmengine's runner.
        scope: default scope of the config.
        allow: whether a dotted key is allowed although nothing uses it.

    Returns:
        the dotted keys that nothing uses and that are allowed.

    Raises:
        UsageError: an unused key or an unknown type; with the nearest known name.
    """
    checker = _Checker(cfg, allow)
    for name in sorted(cfg):
        checker.check(cfg[name], name, scope)
    return checker.unused


class _Checker:
    """Checks the parts of a config.

    Args:
        cfg, allow: as in `check_keys`.

    Attributes:
        unused: dotted keys that nothing uses and that are allowed.
    """

    def __init__(self, cfg: dict, allow: Callable[[str], bool]) -> None:
        self.cfg, self.allow, self.unused = cfg, allow, []

    def reject(self, key: str, message: str) -> None:
        """Raise, unless an unused key is allowed."""
        if not self.allow(key):
            raise UsageError(message)
        self.unused.append(key)

    def check(self, value, where: str, scope: str, parents: tuple[type, ...] = ()) -> None:
        """Check a value and all that it contains.

        Args:
            value: any value of the config.
            where: its dotted key.
            scope: scope of the dict around it.
            parents: classes of the dicts around it, outermost first.
        """
        if isinstance(value, list | tuple):
            for index, item in enumerate(value):
                self.check(item, f'{where}[{index}]', scope, parents)
        if not isinstance(value, dict):
            return
        scope = value.get('_scope_') or scope
        name = value.get('type')
        if not isinstance(name, str) or where.endswith(UNREGISTERED) or name in FUNCTIONS:
            cls, used_by_parents, allowed = (
                None,
                set(),
                self.plain_keys(where, name, scope, parents),
            )
        else:
            cls = self.block(name, where, scope) or find_class(name, scope)
            used_by_parents = set().union(*map(keys_in_sources, parents))
            allowed = arguments(cls) if cls else None
            if allowed is not None and cls.__module__ == _INITIALIZERS:
                allowed = allowed | module_keys(_INITIALIZERS)[0]  # such as `override`
            key = f'{where}.type'
            if cls is None and where.startswith('test_pipeline[') and self.allow(key):
                self.unused.append(key)  # from recipes of mmdet 2; training uses none of it
                return
            if cls is None and name not in used_by_parents:
                hint = suggest_type(name, scope)
                raise UsageError(f"config key {where}.type: '{name}' is not registered.{hint}")
        if where == 'optim_wrapper':
            self.check_groups(value, scope)
            value = {k: v for k, v in value.items() if k not in _OPTIM_WRAPPER}
        if where.endswith('metainfo'):
            _check_metainfo(value, where)
        parents = (*parents, cls) if inspect.isclass(cls) else parents
        for key, item in value.items():
            if allowed is not None and key not in allowed | _BUILDER_KEYS | used_by_parents:
                owner = value.get('type', where)
                self.reject(
                    f'{where}.{key}',
                    f'unknown config key {where}.{key}: {owner} has no {key}.'
                    f'{nearest(key, allowed)}',
                )
            elif not cls or key not in _FOREIGN.get(cls.__name__, ()):
                self.check(item, f'{where}.{key}', scope, parents)

    def plain_keys(
        self, where: str, name: str | None, scope: str, parents: tuple[type, ...]
    ) -> set[str] | None:
        """Keys that are used of a dict whose `type` is no class; None if they are not known."""
        steps = ''.join(c for c in where if not c.isdigit()).split('.')
        if name is None and steps[0] == 'model' and steps[-1].removesuffix('[]') in _NETWORK_DICTS:
            classes = set(nested_classes(self.cfg['model'], scope))
            return _NETWORK_KEYS.union(*(keys_in_sources(cls, attributes=True) for cls in classes))
        keys = [where, '.'.join(steps[-2:]), steps[-1]]
        known = next((_PLAIN_DICTS[key] for key in keys if key in _PLAIN_DICTS), None)
        if steps[-1] == 'data_prefix':
            return known.union(*map(keys_in_sources, parents))
        return known

    def block(self, name: str, where: str, scope: str) -> type | None:
        """The block of a plugin that a network of ours inserts, as `insert` finds it."""
        if not re.fullmatch(r'model(\.backbone)?\.plugins\[\d+\]\.cfg', where):
            return None
        model = self.cfg['model']
        network = find_class(model['type'], model.get('_scope_') or scope)
        return find_block(name, network) if getattr(network, 'trains_plugins', False) else None

    def check_groups(self, wrapper: dict, scope: str) -> None:
        """Check the settings of groups of parameters in `optim_wrapper`."""
        constructor, settings = wrapper.get('constructor'), wrapper.get('paramwise_cfg')
        if constructor:
            self.check(dict(type=constructor), 'optim_wrapper.constructor', scope)
            return  # a constructor of its own may use any setting
        where = 'optim_wrapper.paramwise_cfg'
        self.check(settings, where, scope)
        optimizer = find_class(wrapper.get('optimizer', {}).get('type', ''), scope)
        allowed = _MULTIPLIERS | (arguments(optimizer) or set() if optimizer else set())
        for pattern, group in ((settings or {}).get('custom_keys') or {}).items():
            for name in group:
                if name not in allowed:
                    self.reject(
                        f'{where}.custom_keys.{pattern}.{name}',
                        f'unknown config key {where}.custom_keys[{pattern!r}].{name}: nothing uses '
                        f'it.{nearest(name, allowed)}',
                    )


_INITIALIZERS = 'mmengine.model.weight_init'
_META = ('classes', 'palette', 'thing_classes', 'stuff_classes')


def _check_metainfo(meta: dict, where: str) -> None:
    """Reject mmdet 2's CLASSES: a data set accepts any `metainfo`, and uses keys in lower case."""
    for name in meta:
        if name not in _META and str(name).lower() in _META:
            low = name.lower()
            raise UsageError(
                f'unknown config key {where}.{name}: data sets use {low}, in lower case. Write '
                f'metainfo=dict({low}=...).'
            )
