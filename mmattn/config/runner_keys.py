"""Top-level config keys that mmengine's runner uses, from its source, and their values."""

import ast
import inspect
from collections.abc import Iterator

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from torch import fx, nn

from mmattn.compat import is_installed, missing_module_error
from mmattn.errors import UsageError
from mmattn.plugins import named_plugins
from mmattn.torch_compat import can_compile, has_cpp_compiler

_BACKEND_MODULES = {  # class of mmengine -> the module that it imports when it is built
    'WandbVisBackend': 'wandb',
    'MLflowVisBackend': 'mlflow',
    'ClearMLVisBackend': 'clearml',
    'NeptuneVisBackend': 'neptune',
    'DVCLiveVisBackend': 'dvclive',
    'AimVisBackend': 'aim',
}
_OTHER_KEYS = {
    'tta_model',
    'tta_pipeline',
    'test_pipeline',  # used by mmseg.apis
    'runner_type',  # used by the tools of mmdet and mmseg
    'attention',  # recorded by `add_attention`
    'data_set',  # recorded by `add_data_set`
    'channels_last',  # used by the runner of mmattn
    'unused_keys',  # recorded by `check_config`
}


def read_from_config(cls: type, config: str = 'cfg') -> set[str]:
    """Keys that a class's module takes from a config: `cfg.get('x')`, `self.cfg.x`, `cfg['x']`.

    Args:
        cls: a class.
        config: name of the variable or attribute there that holds the config.
    """
    tree = ast.parse(inspect.getsource(inspect.getmodule(cls)))
    return {name for node in ast.walk(tree) for name in _keys_read(node, config)} - {
        *dir(Config),
        *dir(ConfigDict),
    }


def _keys_read(node: ast.AST, config: str) -> Iterator[str]:
    keys: list[ast.expr] = []
    if isinstance(node, ast.Subscript) and _is_config(node.value, config):
        keys = [node.slice]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in ('get', 'pop', 'setdefault') and _is_config(node.func.value, config):
            keys = node.args[:1]
    elif isinstance(node, ast.Attribute) and _is_config(node.value, config) and node.attr[0] != '_':
        yield node.attr
    elif isinstance(node, ast.Compare) and _is_config(node.comparators[0], config):
        keys = [node.left]
    yield from (k.value for k in keys if isinstance(k, ast.Constant) and isinstance(k.value, str))


def _is_config(node: ast.expr, config: str) -> bool:
    return (isinstance(node, ast.Name) and node.id == config) or (
        isinstance(node, ast.Attribute) and node.attr == config
    )


RUNNER_KEYS = (
    set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}
    | read_from_config(Runner)
    | _OTHER_KEYS
)


def check_runner_keys(cfg: Config) -> None:
    """Reject values that the runner would reject after the start, or ignore.

    Raises:
        UsageError: names the key, its value and the allowed values.
    """
    runner = cfg.get('runner_type', 'Runner')
    if runner not in ('Runner', 'mmengine.Runner'):
        raise UsageError(
            f'config key runner_type={runner!r}: trainings here need the runner of mmattn, which '
            'makes them resume exactly; other runners, and their strategies such as DeepSpeed and '
            'FSDP, are not supported. Leave runner_type out.'
        )
    if cfg.get('sync_bn') not in (None, 'torch', 'mmcv'):
        raise UsageError(
            f"config key sync_bn={cfg.sync_bn!r}: allowed are 'torch' and 'mmcv', which make all "
            'batch norms of a distributed training SyncBN.'
        )
    if cfg.get('channels_last') not in (None, True, False):
        raise UsageError(
            f'config key channels_last={cfg.channels_last!r}: allowed are True and False.'
        )
    options = compile_options(cfg)
    if options is not None:
        _check_compile(options)


def compile_options(cfg: Config) -> dict | None:
    """The arguments of `torch.compile` that a config asks for; None without the key `compile`.

    Raises:
        UsageError: the value is neither True or False nor a dict.
    """
    value = cfg.get('compile')
    if value is None or value is False:
        return None
    if value is not True and not isinstance(value, dict):
        raise UsageError(
            f'config key compile={value!r}: allowed are True, False and the arguments of '
            "torch.compile, e.g. compile=dict(backend='eager')."
        )
    return {} if value is True else dict(value)


def why_not_compiled(backend: str = 'inductor') -> str:
    """Why nothing can be compiled here; '' if it can."""
    if not can_compile:
        version = torch.__version__
        return f'blocks are compiled by torch 2.4 and newer, and torch {version} is installed'
    if backend == 'inductor' and not torch.cuda.is_available() and not has_cpp_compiler():
        return 'torch.compile needs a C++ compiler on a CPU, and there is none'
    return ''


def _check_compile(options: dict) -> None:
    if not can_compile:
        raise UsageError(f'config key compile: {why_not_compiled()}. Write compile=False.')
    arguments = set(inspect.signature(torch.compile).parameters) - {'model'}
    unknown = next((name for name in options if name not in arguments), None)
    if unknown:
        raise UsageError(
            f'unknown config key compile.{unknown}: torch.compile has '
            f'{", ".join(sorted(arguments))}.'
        )
    backend = options.get('backend', 'inductor')
    backends = torch._dynamo.list_backends(exclude_tags=())
    if isinstance(backend, str) and backend not in backends:
        raise UsageError(
            f'config key compile.backend={backend!r}: torch.compile has {", ".join(backends)}.'
        )
    if reason := why_not_compiled(backend):
        raise UsageError(
            f"config key compile: {reason}. Install g++, or write compile=dict(backend='eager') or "
            'compile=False.'
        )


def check_backends(cfg: Config) -> None:
    """Reject a backend of the visualizer whose package is not installed.

    Raises:
        UsageError: names the key, and the command that installs the package.
    """
    backends = (cfg.get('visualizer') or {}).get('vis_backends') or []
    for index, backend in enumerate(backends if isinstance(backends, list) else [backends]):
        kind = backend.get('type', '')
        name = getattr(kind, '__name__', str(kind)).split('.')[-1]
        module = _BACKEND_MODULES.get(name)
        if module and not is_installed(module):
            key = f'visualizer.vis_backends[{index}]'
            raise UsageError(f'config key {key}: {missing_module_error(name, module)}')


def check_modules(cfg: Config, model: nn.Module) -> None:
    """Reject names of modules that the network lacks, or that mmengine cannot rewrite.

    Raises:
        UsageError: names the key, the module and the children of the network.
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
    """Reject modules that cannot be traced, or whose blocks mmengine would drop in eval mode.

    mmengine fuses norms into convolutions there and no longer calls them, so blocks after them are
    lost.
    """
    block = next(
        (path for path, _ in named_plugins(modules['']) if path.startswith(f'{name}.')), None
    )
    if block:
        raise UsageError(
            f'config key {key}: {name} holds the block {block}, which would be left out in eval '
            'mode. Name modules without blocks.'
        )
    try:
        fx.symbolic_trace(modules[name])
    except Exception as error:  # the code of the module, run on proxies, may raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(
            f'config key {key}: {name} ({type(modules[name]).__name__}) cannot be traced: '
            f'{reason[0]}. Name other modules.'
        ) from error
