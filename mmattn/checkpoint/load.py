"""Loading weights into a network, with every mismatch reported."""

from pathlib import Path

from torch import Tensor, nn

from mmattn.blocks import AttentionBlock
from mmattn.errors import CheckpointError
from mmattn.plugins import adapt_state_dict, named_plugins

_SHOWN = 5  # keys named in an error


_BACKBONE = 'backbone.'


_CLASSIFIERS = ('fc', 'head', 'classifier')  # of ImageNet networks, which a backbone has not


def block_forms(model: nn.Module) -> dict[str, str]:
    """Path -> form of every attention block whose weights do not tell its function."""
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
        model: takes the weights.
        weights: the state dict.
        source: where it is from, for messages.
        forms: of the blocks that had these weights, see `block_forms`; not checked if None.

    Raises:
        CheckpointError: a key is missing or left over, or a shape or a block's form differs; the
            model is unchanged.
    """
    weights = unwrapped(weights)
    fit = Fit(model, weights)
    if not fit.matched or fit.wrong:
        raise CheckpointError(
            f'checkpoint {source} {fit.complaint()}. Use the config it was trained with.'
        )
    _check_forms(model, forms, source)
    model.load_state_dict(weights)


def start_from(
    model: nn.Module,
    weights: dict[str, Tensor],
    source: str | Path,
    *,
    forms: dict[str, str] | None = None,
    partial: bool = False,
) -> str:
    """Load weights of the plain network into one with attention.

    Parameters of blocks may be missing, they keep their start; replacements with init='identity'
    start from what they replace. The classifier of an ImageNet network is left out.

    Args:
        model: takes the weights.
        weights, source, forms: as in `load_weights`.
        partial: load what fits, whatever else is missing, left over or of another shape.

    Returns:
        a sentence: how many tensors were loaded, which are new, which were left.

    Raises:
        CheckpointError: anything else is missing, left over or of another shape, unless `partial`;
            nothing fits at all. The model is unchanged.
    """
    weights, below = _of_backbone(model, unwrapped(weights))
    weights = adapt_state_dict(model, weights)
    fit = Fit(model, weights)
    places = _outermost({*_blocks(model), *dict(named_plugins(model))})
    inherited_keys = {
        f'{path}.{to}'
        for path, block in named_plugins(model)
        for _, to, _ in block.plugin.weight_map
    }
    new = [k for k in fit.missing if k.startswith(places) and k not in inherited_keys]
    fit.missing = [
        k for k in fit.missing if k not in set(new) and not k.endswith('.num_batches_tracked')
    ]  # which old files have not
    heads = []
    if below or not hasattr(model, 'backbone'):
        start = _BACKBONE if below else ''
        heads = [k for k in fit.unexpected if k.removeprefix(start).split('.')[0] in _CLASSIFIERS]
        fit.unexpected = [key for key in fit.unexpected if key not in heads]
    if not fit.matched or (fit.wrong and not partial):
        remedy = ', or load what fits with --init-from' if fit.matched else ''
        raise CheckpointError(
            f'weights {source} {fit.complaint()}. Name weights of the same network{remedy}.'
            f'{_reads_itself(model, source) if not fit.matched else ""}'
        )
    _check_forms(model, forms, source)
    model.load_state_dict({**fit.own, **{key: weights[key] for key in fit.matched}})
    parts = [f'{len(fit.matched)} tensors loaded from {source}{below}']
    if new:
        paths = [place[:-1] for place in places if any(key.startswith(place) for key in new)]
        parts.append(f'new: {len(new)} of {len(paths)} blocks ({_some(paths)})')
    if heads:
        parts.append(f'left: the classifier ({_some(heads)})')
    return '; '.join(parts + fit.wrong)


def _of_backbone(model: nn.Module, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Weights with the names that they have in the model, and a word if they are its backbone's.

    Most of the backbone has to be there: a few keys of the same name are chance.
    """
    own = model.state_dict().keys()
    parts = [key for key in own if key.startswith(_BACKBONE)]
    if not parts or set(own) & set(weights):
        return weights, ''
    found = {_BACKBONE + key: value for key, value in weights.items()}
    counted = [key for key in parts if not key.endswith('.num_batches_tracked')]
    if sum(key in found for key in counted) * 2 < len(counted):
        return weights, ''
    return found, ' into the backbone'


def _reads_itself(model: nn.Module, source: str | Path) -> str:
    """The line that helps where a backbone converts files of its authors while it starts."""
    backbone = getattr(model, 'backbone', None)
    if backbone is None or not converts_itself(backbone):
        return ''
    return (
        f' If it is the file of a {type(backbone).__name__} as its authors publish it, which that '
        'class reads and converts, write in the config: '
        f"model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='{source}')))"
    )


def converts_itself(module: nn.Module) -> bool:
    """Whether a class reads pretrained files in a method of its own, as Swin, ViT or BEiT do."""
    code = getattr(type(module).init_weights, '__code__', None)
    names = code.co_names if code else ()
    return any(name in names for name in ('CheckpointLoader', '_load_checkpoint'))


class Fit:
    """How a state dict fits a model."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        own = self.own = model.state_dict()
        self.weights = weights
        self.matched = [k for k in own if k in weights and own[k].shape == weights[k].shape]
        self.shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
        self.missing = [k for k in own if k not in weights]
        self.unexpected = [k for k in weights if k not in own]

    @property
    def wrong(self) -> list[str]:
        """What does not fit, in words."""
        shapes = [
            f'{k} {tuple(self.weights[k].shape)}, model {tuple(self.own[k].shape)}'
            for k in self.shapes
        ]
        found = {'of another shape': shapes, 'missing': self.missing, 'left over': self.unexpected}
        return [f'{len(keys)} {what}: {_some(keys)}' for what, keys in found.items() if keys]

    def complaint(self) -> str:
        if not set(self.own) & set(self.weights):
            first = next(iter(self.weights), '(empty)')
            return f'is of another model: none of its {len(self.weights)} keys match, e.g. {first}'
        return f'does not fit the model: {"; ".join(self.wrong)}'


def _outermost(paths: set[str]) -> tuple[str, ...]:
    """The paths that lie in none of the others, each with a dot behind."""
    found: list[str] = []
    for path in sorted(f'{path}.' for path in paths):
        if not path.startswith(tuple(found)):
            found.append(path)
    return tuple(found)


def _some(names: list[str]) -> str:
    return ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')


def unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
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
