"""Save, load and share networks and blocks: `config.json`, `model.safetensors` and a model card."""

import functools
import json
import re
import tempfile
from collections.abc import Callable
from importlib import import_module
from inspect import isclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmattn import __version__
from mmattn.blocks import AttentionBlock
from mmattn.blocks.base import registered_blocks
from mmattn.compat import is_installed
from mmattn.errors import CheckpointError, UsageError, WriteError, cannot_write
from mmattn.files import sha256
from mmattn.hub import card_metadata, check_license, hub_access, is_repository
from mmattn.registry import MODELS

CONFIG, WEIGHTS, CARD = 'config.json', 'model.safetensors', 'README.md'
_DOWNLOAD = ('revision', 'cache_dir', 'force_download', 'local_files_only', 'token')


def save_pretrained(
    module: nn.Module,
    folder: str | Path,
    *,
    config: Any = None,
    metrics: dict[str, float] | None = None,
    license: str | None = None,
) -> None:
    """Write a network or block into a folder, from which `from_pretrained` reads it.

    `config.json` holds a block's class and arguments, or a network's config as data; weights are
    in `model.safetensors`. A `README.md`, the model card, is written if there is none. The files
    are read back and compared before they are moved into the folder.

    Args:
        module: an attention block; or a detector or segmentor.
        folder: the folder, made if need be.
        config: config of a network, a path, name or `Config`; None for the one it was loaded by.
        metrics: measured metrics of a network, for its card and the hub's index: {'mIoU': 49.2}.
        license: the hub's name of a licence, such as 'apache-2.0'; None for that of the data of a
            network, if known.

    Raises:
        UsageError: the class of the block is not registered, or its arguments are no plain values;
            the network's config is unknown; safetensors or huggingface_hub is not installed.
        CheckpointError: a weight is nan or inf, or the weights do not fit the config.
        WriteError: the folder cannot be written, or a file does not read back.
    """
    save = _safetensors().save
    check_license(license)
    if isinstance(module, AttentionBlock):
        if config is not None or metrics:
            raise UsageError('save_pretrained: config and metrics are those of a network.')
        content, meta, write_card = _describe_block(module, license)
    else:
        networks = import_module('mmattn.zoo.networks')  # which loads mmdet and mmseg
        content, meta, write_card = networks.describe_network(module, config, metrics, license)
    weights = finite_weights(module, 'save_pretrained')
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            part = Path(name)
            header = dict(mmattn=json.dumps(meta, sort_keys=True))
            (part / WEIGHTS).write_bytes(save(weights, metadata=header))
            write_config(part / CONFIG, content, part / WEIGHTS)
            _check_reads_back(part, weights)
            if not (folder / CARD).exists():
                (part / CARD).write_text(write_card([part / WEIGHTS]), encoding='utf-8')
            for path in sorted(part.iterdir()):
                path.replace(folder / path.name)
    except OSError as error:
        raise cannot_write(folder, error, 'Choose another folder.') from error


def from_pretrained(source: str | Path, *, device: str | None = None, **options: Any) -> nn.Module:
    """A network or block that `save_pretrained`, `push_to_hub` or `mmattn publish --hub` wrote.

    Nothing in the files is executed: a block is of a registered class, with plain values as
    arguments; the config of a network is read as data, whose types are registered names.

    Args:
        source: folder; or repository of the Hugging Face Hub, 'owner/name' or 'hf://owner/name'.
        device: 'cpu', 'cuda:0', ...; None for the CPU for a block, the best available for a
            network.
        **options: of the download: revision, cache_dir, force_download, local_files_only, token.

    Returns:
        the network or block in eval mode.

    Raises:
        UsageError: the source is neither; an option is unknown; a class is not registered here.
        CheckpointError: it cannot be downloaded, is damaged, or holds something to execute.
    """
    if unknown := [name for name in options if name not in _DOWNLOAD]:
        raise UsageError(
            f'from_pretrained: unknown option {unknown[0]}; allowed are {", ".join(_DOWNLOAD)}.'
        )
    folder, where = Path(source), str(source)
    if folder.is_dir():
        if options:
            raise UsageError(f'{folder} is a folder: {", ".join(options)} are for the hub.')
        return _load(_read_config(folder / CONFIG), folder.joinpath, where, device)
    repository = where.removeprefix('hf://')
    if not is_repository(repository):
        raise UsageError(
            f'from_pretrained {source}: there is no such folder, and a repository of the hub is '
            'owner/name.'
        )
    where = f'hf://{repository}'
    with hub_access(where, f'cannot download {where}', CheckpointError) as hub:
        return _hub_model(hub.ModelHubMixin).from_pretrained(
            repository, device=device, **options
        ).module  # fmt: skip


def push_to_hub(
    module: nn.Module,
    repository: str,
    *,
    config: Any = None,
    metrics: dict[str, float] | None = None,
    license: str | None = None,
    **options: Any,
) -> str:
    """Upload what `save_pretrained` writes to the Hugging Face Hub, in one commit.

    Args:
        module, config, metrics, license: as in `save_pretrained`.
        repository: 'owner/name', created if missing; the token is that of `hf auth login`, or
            HF_TOKEN.
        **options: of huggingface_hub's `ModelHubMixin.push_to_hub`: private, token, branch,
            create_pr, commit_message, ...

    Returns:
        the address of the commit.

    Raises:
        UsageError, CheckpointError: as `save_pretrained`; the repository is not owner/name.
        WriteError: the hub refuses, or there is no network.
    """
    if not is_repository(repository):
        raise UsageError(f'push_to_hub {repository}: write owner/name.')
    write = functools.partial(
        save_pretrained, module, config=config, metrics=metrics, license=license
    )
    failure = f'cannot upload to {repository}'
    with hub_access(f'push_to_hub {repository}', failure, WriteError) as hub:
        return str(_hub_model(hub.ModelHubMixin)(module, write).push_to_hub(repository, **options))


@functools.cache
def _hub_model(mixin: type) -> type:
    """A class with huggingface_hub's methods for a network or block.

    It is made here as a base class could be missing, and would make blocks need huggingface_hub.
    """

    class HubModel(mixin):
        def __init__(self, module: nn.Module, write: Callable[[Path], None] | None = None) -> None:
            self.module, self.write = module, write

        def _save_pretrained(self, save_directory: Path) -> None:
            self.write(save_directory)

        @classmethod
        def _from_pretrained(
            cls, *, model_id: str, device: str | None, config: Any = None, **options: Any
        ) -> 'HubModel':
            from huggingface_hub import hf_hub_download

            options = {name: options[name] for name in _DOWNLOAD if name in options}

            def path_of(name: str) -> Path:
                return Path(hf_hub_download(model_id, name, **options))

            where = f'hf://{model_id}'
            return cls(_load(_read_config(path_of(CONFIG)), path_of, where, device))

    return HubModel


# ---- reading -----------------------------------------------------------------------------------
def _read_config(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise CheckpointError(
            f'{path.parent} has no {path.name}, as save_pretrained writes it: '
            f'{(error.strerror or str(error)).lower()}.'
        ) from error
    except ValueError as error:
        raise CheckpointError(f'{path} is damaged: {error}.') from error
    if not isinstance(content, dict) or content.get('library_name') != 'mmattn':
        raise CheckpointError(f'{path} is not of mmattn: library_name is another.')
    return content


def _load(
    content: dict, path_of: Callable[[str], Path], where: str, device: str | None
) -> nn.Module:
    """The network or block of a `config.json`.

    Args:
        content: of `config.json`.
        path_of: name of a file -> its path, downloaded if need be.
        where: folder or repository, for messages.
        device: as in `from_pretrained`.
    """
    name, digest = content.get('weights'), content.get('sha256')
    if not isinstance(name, str) or not re.fullmatch(r'[\w.-]+\.safetensors', name):
        raise CheckpointError(f'{where}: weights is {name!r} in config.json, not a .safetensors.')
    path = path_of(name)
    if not path.is_file():
        raise CheckpointError(f'{where} has no {name}, which its config.json names.')
    if digest and sha256(path) != digest:
        raise CheckpointError(f'{where}: {name} is damaged: its sha256 is not that in config.json.')
    kind = content.get('kind')
    if kind == 'block':
        return _build_block(content, path, where, device)
    if kind == 'network':
        networks = import_module('mmattn.zoo.networks')
        return networks.build_saved_network(content, path, where, device)
    raise CheckpointError(f"{where}: kind is {kind!r} in config.json, not 'block' or 'network'.")


def _build_block(content: dict, path: Path, where: str, device: str | None) -> AttentionBlock:
    name, arguments = content.get('type'), content.get('arguments')
    cls = MODELS.get_registered(name) if isinstance(name, str) else None
    if not isclass(cls) or not issubclass(cls, AttentionBlock):
        raise UsageError(
            f'{where} holds a block {name!r}, which is not registered here. Import the module that '
            'defines it first.'
        )
    try:
        block = cls(**_tuples(arguments))
        block.load_state_dict(_safetensors().load_file(path), assign=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f'{where}: {name} cannot be built: {error}') from error
    return block.to(device or 'cpu').eval()


def _tuples(value: Any) -> Any:
    """The value with tuples for the lists of JSON, as arguments of blocks are written."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# ---- writing -----------------------------------------------------------------------------------
def finite_weights(module: nn.Module, where: str) -> dict[str, torch.Tensor]:
    """The state dict on the CPU, in the order of names.

    Args:
        module: network or block.
        where: what the weights are of, for the message.

    Raises:
        CheckpointError: a weight is nan or inf.
    """
    # copies: safetensors refuses tensors that share memory, as those of a module with two names do
    state = sorted(module.state_dict().items())
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in state}
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            raise CheckpointError(f'{where}: {name} holds {count} non-finite values.')
    return weights


def write_config(path: Path, content: dict, weights: Path) -> None:
    """Write `config.json` for a file of weights next to it."""
    content = dict(
        library_name='mmattn', mmattn_version=__version__, **content, weights=weights.name,
        sha256=sha256(weights),
    )  # fmt: skip
    path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def _describe_block(
    block: AttentionBlock, license: str | None
) -> tuple[dict, dict, Callable[[list[Path]], str]]:
    name = next((k for k, v in registered_blocks().items() if v is type(block)), None)
    if name is None:
        raise UsageError(
            f'save_pretrained: {type(block).__name__} is not registered, so it could not be found '
            'again. Decorate it with @mmattn.registry.MODELS.register_module().'
        )
    try:
        arguments = json.loads(json.dumps(block.arguments))
    except TypeError as error:
        raise UsageError(
            f'save_pretrained: an argument of {name} is no plain value: {error}.'
        ) from error

    def write_card(paths: list[Path]) -> str:
        tags = ['attention', name, block.kind]
        head = card_metadata(name, license=license, tags=tags)
        shown = json.dumps(arguments, indent=1)
        return (
            f'{head}# {name}\n\nAn attention block of mmattn.\n\n```python\nimport mmattn\n\n'
            f"block = mmattn.{name}.from_pretrained('OWNER/NAME')\n```\n\n"
            f'## Arguments\n\n```json\n{shown}\n```\n\n## Files\n\n'
            + '\n'.join(f'`{path.name}`, sha256 `{sha256(path)}`' for path in paths)
            + '\n'
        )

    return dict(kind='block', type=name, arguments=arguments), {}, write_card


def _check_reads_back(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    with torch.random.fork_rng(devices=[]):  # building a network draws its initial weights
        module = from_pretrained(folder, device='cpu')
    state = module.state_dict()
    if any(not torch.equal(state[name].to(value.dtype), value) for name, value in weights.items()):
        raise WriteError(f'{folder} does not read back as it was written. Check the disk.')


def _safetensors() -> Any:
    if not is_installed('safetensors'):
        raise UsageError(
            'save_pretrained and from_pretrained need safetensors. Run: pip install "mmattn[hub]"'
        )
    import safetensors.torch

    return safetensors.torch
