"""The registries of mmattn, children of mmengine's.

A config of any scope reaches them by prefix, `type='mmattn.CBAM'`, without `custom_imports`:
mmengine imports this module for the prefix and, at the first lookup, every module in `locations`.
"""

from collections.abc import Callable, Iterable, Iterator, MutableMapping

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

from mmattn.compat import is_installed


class OnDemandRegistry(Registry):
    """A registry that can also make a class when its name is first looked up.

    Attributes:
        factory: name -> class, or None for a name that it does not know.
        factory_names: returns the names that `factory` knows.
    """

    factory: Callable[[str], type | None] | None = None
    factory_names: Callable[[], Iterable[str]] | None = None

    def get(self, key: str) -> type | None:
        self.import_from_location()
        if isinstance(key, str):
            scope, name = self.split_scope_key(key)
            if scope in (None, self.scope):
                self.get_registered(name)
        return super().get(key)

    def get_registered(self, name: str) -> type | None:
        """The class registered under a name, made now if need be; None if there is none."""
        if name not in self._module_dict and self.factory is not None:
            cls = self.factory(name)
            if cls is not None:
                self._module_dict[name] = cls
        return self._module_dict.get(name)

    def names(self) -> list[str]:
        """Registered names, and those whose classes can be made."""
        factory_names = self.factory_names() if self.factory_names is not None else ()
        return list(dict.fromkeys([*self._module_dict, *factory_names]))

    @property
    def module_dict(self) -> MutableMapping[str, type]:
        return _Classes(self)

    def __len__(self) -> int:
        return len(self.names())

    def __repr__(self) -> str:
        for name in self.names():
            self.get_registered(name)
        return super().__repr__()


class _Classes(MutableMapping):
    """Name -> class of an `OnDemandRegistry`; classes are made when they are read."""

    def __init__(self, registry: OnDemandRegistry) -> None:
        self.registry = registry

    def __getitem__(self, name: str) -> type:
        cls = self.registry.get_registered(name)
        if cls is None:
            raise KeyError(name)
        return cls

    def __setitem__(self, name: str, cls: type) -> None:
        self.registry._module_dict[name] = cls

    def __delitem__(self, name: str) -> None:
        del self.registry._module_dict[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.registry.names())

    def __len__(self) -> int:
        return len(self.registry)


def _child(parent: Registry, *locations: str, kind: type[Registry] = Registry) -> Registry:
    return kind(parent.name, parent=parent, scope='mmattn', locations=list(locations))


# Blocks need none of the three packages that the networks are built on.
_networks = ('mmattn.models',) if is_installed('mmcv', 'mmdet', 'mmseg') else ()
MODELS = _child(MMENGINE_MODELS, 'mmattn.blocks', *_networks, kind=OnDemandRegistry)
DATASETS = _child(MMENGINE_DATASETS, 'mmattn.datasets.camvid')
METRICS = _child(MMENGINE_METRICS, 'mmattn.evaluation.coco_metric', 'mmattn.evaluation.iou_metric')
HOOKS = _child(MMENGINE_HOOKS, 'mmattn.engine.hooks')
