"""The registries of mmattn: children of mmengine's, or of nothing where mmengine is not installed.

With mmengine a config of any scope reaches them by prefix, `type='mmattn.CBAM'`, without
`custom_imports`: mmengine imports this module for the prefix and, at the first lookup, every module
in `locations`.
"""

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from mmattn.compat import is_installed

if is_installed('mmengine'):
    from mmengine import registry as mmengine_registry
    from mmengine.registry import Registry
else:
    mmengine_registry = None

    class Registry:
        """The part of mmengine's class of this name that the blocks need.

        Args:
            name: what is registered, for messages.
            scope: prefix of the names, 'mmattn'.
            locations: modules that register something when they are imported.
        """

        def __init__(
            self, name: str, *, parent: None = None, scope: str, locations: Iterable[str] = ()
        ) -> None:
            self.name, self.scope, self.parent = name, scope, parent
            self.children: dict[str, Registry] = {}
            self._module_dict: dict[str, type] = {}
            self._locations = list(locations)

        def import_from_location(self) -> None:
            locations, self._locations = self._locations, []
            for location in locations:
                import_module(location)

        @staticmethod
        def split_scope_key(key: str) -> tuple[str | None, str]:
            scope, _, name = key.rpartition('.')
            return scope or None, name

        @contextmanager
        def switch_scope_and_registry(self, scope: str | None) -> Iterator['Registry']:
            yield self

        def register_module(self, name: str | None = None, force: bool = False) -> Callable:
            """A decorator that registers a class under `name`, or else under its own.

            Raises:
                KeyError: the name is taken, unless `force`.
            """

            def register(cls: type) -> type:
                key = name or cls.__name__
                if key in self._module_dict and not force:
                    raise KeyError(f'{key} is already registered in {self.name}')
                self._module_dict[key] = cls
                return cls

            return register

        def get(self, key: str) -> type | None:
            """The class of a name with or without the prefix; None if there is none."""
            self.import_from_location()
            scope, name = self.split_scope_key(key)
            return self._module_dict.get(name) if scope in (None, self.scope) else None

        def build(self, cfg: dict[str, Any], **arguments: Any) -> Any:
            """An object of the class that `cfg['type']` names, with the other keys as arguments.

            Raises:
                KeyError: the name is not registered.
            """
            arguments = {**cfg, **arguments}
            cls = arguments.pop('type')
            if isinstance(cls, str):
                cls, name = self.get(cls), cls
                if cls is None:
                    raise KeyError(f'{name} is not registered in {self.name}')
            return cls(**arguments)


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


def _child(name: str, *locations: str, kind: type[Registry] = Registry) -> Registry:
    parent = getattr(mmengine_registry, f'{name}s'.upper(), None)
    return kind(name, parent=parent, scope='mmattn', locations=list(locations))


# Blocks need none of the three packages that the networks are built on.
_networks = ('mmattn.models',) if is_installed('mmcv', 'mmdet', 'mmseg') else ()
MODELS = _child('model', 'mmattn.blocks', *_networks, kind=OnDemandRegistry)
ROOT = (
    MODELS if MODELS.parent is None else MODELS.parent
)  # where names of any package are looked up
DATASETS = _child('dataset', 'mmattn.datasets.camvid')
TRANSFORMS = _child('transform', 'mmattn.datasets.transforms')
METRICS = _child('metric', 'mmattn.evaluation.coco_metric', 'mmattn.evaluation.iou_metric')
HOOKS = _child('hook', 'mmattn.engine.hooks')
OPTIM_WRAPPERS = _child('optim_wrapper', 'mmattn.engine.optimizer')
