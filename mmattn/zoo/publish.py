"""Publish a training checkpoint: weights with a hash in their name, a model card, the config."""

import copy
import hashlib
import json
from io import BytesIO
from pathlib import Path

import torch
from safetensors.torch import save

from mmattn.checkpoint.load import load_weights
from mmattn.checkpoint.read import Checkpoint, open_checkpoint, read_checkpoint
from mmattn.config.load import load_config
from mmattn.engine.network import build_model
from mmattn.engine.run_config import run_name
from mmattn.errors import CheckpointError, UsageError, WriteError, cannot_write
from mmattn.hub import check_license, hub_access, is_repository

from .card import measured_metrics, network_card, network_metadata
from .networks import model_meta, network_entry
from .pretrained import CARD, CONFIG, finite_weights, write_config


def publish(
    config: str | Path,
    checkpoint: str | Path | Checkpoint,
    out_dir: str | Path,
    *,
    license: str | None = None,
    half: bool = False,
) -> dict[str, Path]:
    """Write the weights of a checkpoint as `.safetensors` and `.pth`, a model card and the config.

    Names are `<config name>-<first 8 of the file's sha256>`. The same checkpoint gives the same
    bytes. Both files are read back and compared before this returns.

    Args:
        config: config it was trained with; the weights must fit it.
        checkpoint: checkpoint that training wrote, a file or an open one.
        out_dir: folder for the four files.
        license: the hub's name of a licence for the card; None for that of the data, if known.
        half: whether to round the weights to float16, which halves the files; networks load them
            as float32. The card says so, as its metric is that of the checkpoint.

    Returns:
        `{'safetensors': path, 'pth': path, 'card': path, 'config': path}`.

    Raises:
        CheckpointError: the checkpoint does not fit the config, or holds nan or inf.
        UsageError: a licence is given, and huggingface_hub is not installed.
        WriteError: `out_dir` cannot be written, or a file does not read back.
    """
    check_license(license)
    checkpoint = open_checkpoint(checkpoint, training_state=False)
    meta, attention = checkpoint.meta, checkpoint.meta.get('attention')
    trained = load_config(config, attention=attention, data=meta.get('data_set'))
    model, cfg = build_model(copy.deepcopy(trained), checkpoint)
    weights = finite_weights(model, f'checkpoint {checkpoint.path}')
    if half:
        weights = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
        finite = all(v.isfinite().all() for v in weights.values())
        if not finite:
            raise CheckpointError(
                f'checkpoint {checkpoint.path} has values above 65504, which float16 does not '
                'hold. Publish it without --half.'
            )
    name, blocks = Path(config).stem, attention and attention['names']
    stem = run_name(config, blocks)
    model_facts = model_meta(name, model, cfg, attention, meta)
    # one entry: safetensors writes several in an order that changes from process to process
    header = dict(mmattn=json.dumps(model_facts, sort_keys=True))
    buffer = BytesIO()
    torch.save(dict(state_dict=weights, meta=model_facts), buffer)
    out_dir = Path(out_dir)
    paths = {
        'safetensors': _write(out_dir, stem, '.safetensors', save(weights, metadata=header)),
        'pth': _write(out_dir, stem, '.pth', buffer.getvalue()),
    }
    for path in paths.values():
        read_back = read_checkpoint(path)
        load_weights(model, read_back['state_dict'], path, read_back['meta'].get('blocks'))
        if any(not torch.equal(weights[k], v) for k, v in read_back['state_dict'].items()):
            raise WriteError(f'{path} does not read back as it was written. Check the disk.')
    dataset, metrics = model_facts['dataset_meta'], measured_metrics(checkpoint.path, stem)
    if half:
        metrics.text += '\n\nMeasured before the weights were rounded to float16.'
    command = f'configs/{name}.py' + (f' --attention {blocks}' if blocks else '')
    head = network_metadata(stem, model, trained, dataset, metrics, license)
    files = [*paths.values()]
    card = network_card(stem, command, trained, meta, dataset, metrics, files, head)
    paths['card'] = paths['safetensors'].with_suffix('.md')
    paths['card'].write_text(card, encoding='utf-8')
    paths['config'] = paths['safetensors'].with_suffix('.json')
    write_config(
        paths['config'], network_entry(name, trained, model_facts), paths['safetensors']
    )  # fmt: skip
    return paths


def upload(paths: dict[str, Path], repository: str, *, private: bool = False) -> str:
    """Upload published files to a repository of the Hugging Face Hub, created if missing.

    All files go into one commit. The card becomes the README if the repository has none, and the
    config its `config.json`. `mmattn.from_pretrained('owner/repository')` loads from there, or
    `mmattn.load_model(name, 'hf://owner/repository')`.

    Args:
        paths: files to upload, as `publish` returns them.
        repository: 'owner/name'; the token is that of `hf auth login`, or HF_TOKEN.
        private: whether a repository that is created is private.

    Returns:
        the address of the repository.

    Raises:
        UsageError: huggingface_hub is not installed; the repository is not owner/name.
        WriteError: the hub refuses, or there is no network.
    """
    if not is_repository(repository):
        raise UsageError(f'--hub {repository}: write owner/name.')
    failure, remedy = f'cannot upload to {repository}', 'The files themselves are written.'
    with hub_access('--hub', failure, WriteError, remedy) as package:
        hub = package.HfApi()
        address = hub.create_repo(repository, exist_ok=True, private=private)
        files = {path.name: path for kind, path in paths.items() if kind != 'config'}
        files[CONFIG] = paths['config']
        if CARD not in hub.list_repo_files(repository):
            files[CARD] = paths['card']
        hub.create_commit(
            repository,
            operations=[
                package.CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
                for name, path in files.items()
            ],
            commit_message=f'Upload {paths["safetensors"].stem}',
        )
    return str(address)


def _write(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    path = folder / f'{stem}-{hashlib.sha256(data).hexdigest()[:8]}{suffix}'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise cannot_write(path, error, 'Choose another --out-dir.') from error
    return path
