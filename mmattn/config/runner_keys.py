"""The top-level keys that mmengine's runner reads, found in its source, and their values."""

import ast
import functools
import inspect
from collections.abc import Iterator

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from torch import fx, nn

from mmattn.errors import UsageError
from mmattn.plugins import named_plugins

_OTHERS = {
    'tta_model',
    'tta_pipeline',
    'test_pipeline',  # of mmseg.apis
    'runner_type',  # of the tools of mmdet and mmseg
    'attention',  # of `add_attention`
    'unused_keys',  # of `check_keys`
}


def read_from_config(cls: type) -> set[str]:
    """Keys that a class takes from `cfg`: `cfg.get('x')`, `self.cfg.x`, `cfg['x']`."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(cls)))
    return {name for node in ast.walk(tree) for name in _taken(node)} - {
        *dir(Config),
        *dir(ConfigDict),
    }


def _taken(node: ast.AST) -> Iterator[str]:
    texts: list[ast.expr] = []
    if isinstance(node, ast.Subscript) and _is_config(node.value):
        texts = [node.slice]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in ('get', 'pop', 'setdefault') and _is_config(node.func.value):
            texts = node.args[:1]
    elif isinstance(node, ast.Attribute) and _is_config(node.value) and node.attr[0] != '_':
        yield node.attr
    yield from (t.value for t in texts if isinstance(t, ast.Constant) and isinstance(t.value, str))


def _is_config(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == 'cfg') or (
        isinstance(node, ast.Attribute) and node.attr == 'cfg'
    )


RUNNER_KEYS = (
    set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}
    | read_from_config(Runner)
    | _OTHERS
)


def check_runner_keys(cfg: Config) -> None:
    """Refuse values that the runner would refuse after the start, or does not know.

    Raises:
        UsageError: names the key, its value and what is allowed.
    """
    kind = cfg.get('runner_type', 'Runner')
    if kind not in ('Runner', 'mmengine.Runner'):
        raise UsageError(
            f'config key runner_type={kind!r}: trainings here need the runner of mmattn, which '
            'makes them resume exactly; other runners, and their strategies such as DeepSpeed and '
            'FSDP, are not supported. Leave runner_type out.'
        )
    if cfg.get('sync_bn') not in (None, 'torch', 'mmcv'):
        raise UsageError(
            f"config key sync_bn={cfg.sync_bn!r}: allowed are 'torch' and 'mmcv', which make all "
            'batch norms of a distributed training SyncBN.'
        )
    if cfg.get('compile'):
        _check_compile(cfg.compile)


def _check_compile(value) -> None:
    if value is not True and not isinstance(value, dict):
        raise UsageError(
            f'config key compile={value!r}: allowed are True, False and the arguments of '
            "torch.compile, e.g. compile=dict(backend='eager')."
        )
    options = {} if value is True else value
    known = set(inspect.signature(torch.compile).parameters) - {'model'}
    wrong = next((name for name in options if name not in known), None)
    if wrong:
        raise UsageError(
            f'config key compile.{wrong} is read by nobody: torch.compile has '
            f'{", ".join(sorted(known))}.'
        )
    backend = options.get('backend', 'inductor')
    backends = torch._dynamo.list_backends(exclude_tags=())
    if isinstance(backend, str) and backend not in backends:
        raise UsageError(
            f'config key compile.backend={backend!r}: torch.compile has {", ".join(backends)}.'
        )
    if backend == 'inductor' and not torch.cuda.is_available() and not _has_compiler():
        raise UsageError(
            'config key compile: torch.compile needs a C++ compiler on a CPU, and none is found. '
            "Install g++, or write compile=dict(backend='eager') or compile=False."
        )


@functools.cache
def _has_compiler() -> bool:
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return False
    return True


def check_modules(cfg: Config, model: nn.Module) -> None:
    """Refuse names of modules that the network does not have, or that cannot be rewritten.

    Raises:
        UsageError: names the key, the module and the parts of the network.
    """
    modules = dict(model.named_modules())
    parts = ', '.join(name for name, _ in model.named_children())
    for key in 'activation_checkpointing', 'efficient_conv_bn_eval':
        names = cfg.get(key) or []
        for name in [names] if isinstance(names, str) else names:
            if name not in modules:
                raise UsageError(
                    f'config key {key}: {type(model).__name__} has no module {name!r}. It has '
                    f'{parts} and what is inside them.'
                )
            if key == 'efficient_conv_bn_eval':
                _check_rewriting(key, name, modules)


def _check_rewriting(key: str, name: str, modules: dict[str, nn.Module]) -> None:
    """mmengine traces the module, and calls no norm in eval mode: blocks behind it are lost."""
    inside = next(
        (path for path, _ in named_plugins(modules['']) if path.startswith(f'{name}.')), None
    )
    if inside:
        raise UsageError(
            f'config key {key}: {name} holds the block {inside}, which would be left out in eval '
            'mode. Name modules without blocks.'
        )
    try:
        fx.symbolic_trace(modules[name])
    except Exception as error:  # whatever the code of a module does with what is traced
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(
            f'config key {key}: {name} ({type(modules[name]).__name__}) cannot be traced: '
            f'{reason[0]}. Name other modules.'
        ) from error
