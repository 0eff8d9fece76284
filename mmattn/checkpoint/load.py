"""Loading weights into a network, with every mismatch reported."""

from pathlib import Path

from torch import Tensor, nn

from mmattn.blocks import AttentionBlock
from mmattn.errors import CheckpointError
from mmattn.plugins import adapt_state_dict, named_plugins
from mmattn.text import some

_BACKBONE = 'backbone.'
_CLASSIFIERS = ('fc', 'head', 'classifier')  # of ImageNet networks; a backbone has none


def block_forms(model: nn.Module) -> dict[str, str]:
    """Path and `form` of the attention blocks whose function depends on more than their weights."""
    return {name: block.form for name, block in _blocks(model).items() if block.form}


def _blocks(model: nn.Module) -> dict[str, AttentionBlock]:
    return {
        name.removeprefix('module.'): m
        for name, m in model.named_modules()
        if isinstance(m, AttentionBlock)
    }


def load_weights(
    model: nn.Module,
    weights: dict[str, Tensor],
    source: str | Path,
    forms: dict[str, str] | None = None,
) -> None:
    """Load a state dict strictly.

    Args:
        model: the network to load into.
        weights: a state dict.
        source: file of the weights, for messages.
        forms: `block_forms` of the network that was trained; not checked if None.

    Raises:
        CheckpointError: a key is missing or left over, or a shape or a block's form differs; the
            model is unchanged.
    """
    weights = rename_weights(model, strip_module_prefix(weights))
    match = StateDictMatch(model, weights)
    if not match.matched or match.problems:
        raise CheckpointError(
            f'checkpoint {source} {match.message()}. Use the config it was trained with.'
        )
    _check_forms(model, forms, source)
    model.load_state_dict(weights)


def load_initial_weights(
    model: nn.Module,
    weights: dict[str, Tensor],
    source: str | Path,
    *,
    forms: dict[str, str] | None = None,
    partial: bool = False,
) -> str:
    """Load weights of the plain network into one with attention, to train it from there.

    Parameters of attention blocks may be missing and keep their initial values; replacements with
    init='identity' start from the layers that they replace. The classifier of an ImageNet network
    is left out.

    Args:
        model: the network to load into.
        weights, source, forms: as in `load_weights`.
        partial: load the tensors that fit, even if others are missing, left over or of another
            shape.

    Returns:
        a text: how many tensors were loaded, which are new, which were left out.

    Raises:
        CheckpointError: another tensor is missing, left over or of another shape, unless
            `partial`; none fits. The model is unchanged.
    """
    return load_and_compare(model, weights, source, forms=forms, partial=partial)[0]


def load_and_compare(
    model: nn.Module,
    weights: dict[str, Tensor],
    source: str | Path,
    *,
    forms: dict[str, str] | None = None,
    partial: bool = False,
) -> tuple[str, 'StateDictMatch']:
    """As `load_initial_weights`; returns its text and the comparison of the state dicts.

    New parameters and the classifier, which are expected, are not in the comparison.
    """
    weights = rename_weights(model, strip_module_prefix(weights))
    weights, target = _match_backbone(model, weights)
    weights = adapt_state_dict(model, weights)
    match = StateDictMatch(model, weights)
    prefixes = _outermost({*_blocks(model), *dict(named_plugins(model))})
    inherited_keys = {
        f'{path}.{to}'
        for path, block in named_plugins(model)
        for _, to, _ in block.plugin.weight_map
    }
    new = [k for k in match.missing if k.startswith(prefixes) and k not in inherited_keys]
    match.missing = [
        k for k in match.missing if k not in set(new) and not k.endswith('.num_batches_tracked')
    ]  # which old files lack
    heads = []
    if target or not hasattr(model, 'backbone'):
        prefix = _BACKBONE if target else ''
        heads = [
            key
            for key in match.unexpected
            if key.removeprefix(prefix).split('.')[0] in _CLASSIFIERS
        ]
        match.unexpected = [key for key in match.unexpected if key not in heads]
    if not match.matched or (match.problems and not partial):
        remedy = ', or load what fits with --init-from' if match.matched else ''
        raise CheckpointError(
            f'weights {source} {match.message()}. Name weights of the same network{remedy}.'
            f'{_conversion_hint(model, source) if not match.matched else ""}'
        )
    _check_forms(model, forms, source)
    model.load_state_dict({**match.own, **{key: weights[key] for key in match.matched}})
    parts = [f'{len(match.matched)} tensors loaded from {source}{target}']
    if new:
        paths = [p[:-1] for p in prefixes if any(key.startswith(p) for key in new)]
        parts.append(f'new: {len(new)} of {len(paths)} blocks ({some(paths)})')
    if heads:
        parts.append(f'left: the classifier ({some(heads)})')
    return '; '.join(parts + match.problems), match


def rename_weights(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of today, those of the model.

    Renamed are the files of a backbone's authors, where its class has `rename_weights`, and the
    offsets of deformable convolutions in MMDetection's checkpoints of 2020, `conv2_offset`.
    """
    backbone = getattr(model, 'backbone', model)
    if hasattr(backbone, 'rename_weights'):
        weights = backbone.rename_weights(weights)
    names = {}
    for path, module in model.named_modules():
        if hasattr(module, 'conv_offset'):
            for place in path, path.removeprefix(_BACKBONE):
                for kind in 'weight', 'bias':
                    names[f'{place}_offset.{kind}'] = f'{place}.conv_offset.{kind}'
    if names.keys().isdisjoint(weights):
        return weights
    return {names.get(key, key): value for key, value in weights.items()}


def _match_backbone(model: nn.Module, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Weights of a bare backbone under the names of the model, and ' into the backbone'.

    Other weights are returned unchanged, with ''. More than half of the backbone's keys must match,
    as a few may have the same name by chance.
    """
    own = model.state_dict().keys()
    backbone_keys = [key for key in own if key.startswith(_BACKBONE)]
    if not backbone_keys or set(own) & set(weights):
        return weights, ''
    prefixed = {_BACKBONE + key: value for key, value in weights.items()}
    counted = [key for key in backbone_keys if not key.endswith('.num_batches_tracked')]
    if sum(key in prefixed for key in counted) * 2 < len(counted):
        return weights, ''
    return prefixed, ' into the backbone'


def _conversion_hint(model: nn.Module, source: str | Path) -> str:
    """A hint for backbones whose `init_weights` converts files as their authors publish them."""
    backbone = getattr(model, 'backbone', None)
    if backbone is None or not converts_itself(backbone):
        return ''
    return (
        f' If it is the file of a {type(backbone).__name__} as its authors publish it, which that '
        'class reads and converts, write in the config: '
        f"model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='{source}')))"
    )


def converts_itself(module: nn.Module) -> bool:
    """Whether `init_weights` of a class reads pretrained files itself, as in Swin, ViT or BEiT."""
    code = getattr(type(module).init_weights, '__code__', None)
    names = code.co_names if code else ()
    return any(name in names for name in ('CheckpointLoader', '_load_checkpoint'))


class StateDictMatch:
    """Comparison of a state dict with the one that a model expects.

    Attributes:
        own: the model's state dict.
        weights: the state dict to load.
        matched: keys in both, with the same shape.
        shapes: keys in both, with different shapes.
        missing: keys of the model alone.
        unexpected: keys of the weights alone.
    """

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        own = self.own = model.state_dict()
        self.weights = weights
        self.matched = [k for k in own if k in weights and own[k].shape == weights[k].shape]
        self.shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
        self.missing = [k for k in own if k not in weights]
        self.unexpected = [k for k in weights if k not in own]

    @property
    def problems(self) -> list[str]:
        """Keys that do not fit, one text for each kind of mismatch."""
        shapes = [
            f'{k} {tuple(self.weights[k].shape)}, model {tuple(self.own[k].shape)}'
            for k in self.shapes
        ]
        kinds = {'of another shape': shapes, 'missing': self.missing, 'left over': self.unexpected}
        return [f'{len(keys)} {kind}: {some(keys)}' for kind, keys in kinds.items() if keys]

    def message(self) -> str:
        """The mismatches as the predicate of a sentence."""
        if not set(self.own) & set(self.weights):
            first = next(iter(self.weights), '(empty)')
            return f'is of another model: none of its {len(self.weights)} keys match, e.g. {first}'
        return f'does not fit the model: {"; ".join(self.problems)}'


def _outermost(paths: set[str]) -> tuple[str, ...]:
    """Prefixes, with a trailing dot, of the paths that are inside none of the others."""
    prefixes: list[str] = []
    for prefix in sorted(f'{path}.' for path in paths):
        if not prefix.startswith(tuple(prefixes)):
            prefixes.append(prefix)
    return tuple(prefixes)


def strip_module_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a network that was saved inside a DDP wrapper."""
    return {key.removeprefix('module.'): value for key, value in weights.items()}


def _check_forms(model: nn.Module, forms: dict[str, str] | None, source: str | Path) -> None:
    own = block_forms(model)
    for name, form in (forms or {}).items():
        if own.get(name, form) != form:
            raise CheckpointError(
                f'checkpoint {source} does not fit the model: {name} was trained with '
                f"init='{form}' and computes something else with init='{own[name]}'. "
                f"Write init='{form}' in the config."
            )
