"""Publish a training checkpoint: weights with a hash in their name, and a model card."""

import copy
import hashlib
import json
import re
from io import BytesIO
from pathlib import Path

import torch
from mmengine.config import Config
from safetensors.torch import save

from mmattn.checkpoint.load import block_forms, load_weights
from mmattn.checkpoint.manifest import facts_of, file_sha256
from mmattn.checkpoint.plain_values import plain_items, tensors_to_lists
from mmattn.checkpoint.read import Checkpoint, open_checkpoint, read_checkpoint
from mmattn.config.leaves import dataset_leaves
from mmattn.config.load import load_config
from mmattn.engine.network import build_model, dataset_meta
from mmattn.engine.run_config import run_name
from mmattn.errors import CheckpointError, UsageError, WriteError, cannot_write
from mmattn.files import sha256
from mmattn.visualization.curves import read_scalars


def publish(
    config: str | Path, checkpoint: str | Path | Checkpoint, out_dir: str | Path
) -> dict[str, Path]:
    """Write the weights of a checkpoint as `.safetensors` and `.pth`, and a model card.

    Names are `<config name>-<first 8 of the file's sha256>`. The same checkpoint gives the same
    bytes. Both files are read back and compared before this returns.

    Args:
        config: config it was trained with; the weights must fit it.
        checkpoint: checkpoint that training wrote, a file or an open one.
        out_dir: folder for the three files.

    Returns:
        `{'safetensors': path, 'pth': path, 'card': path}`.

    Raises:
        CheckpointError: the checkpoint does not fit the config, or holds nan or inf.
        WriteError: `out_dir` cannot be written, or a file does not read back.
    """
    checkpoint = open_checkpoint(checkpoint, training_state=False)
    meta, attention = checkpoint.meta, checkpoint.meta.get('attention')
    trained = load_config(config, attention=attention, data=meta.get('data_set'))
    model, cfg = build_model(copy.deepcopy(trained), checkpoint)
    # copies: safetensors refuses tensors that share memory, as those of a module with two names do
    weights = {k: v.cpu().clone().contiguous() for k, v in sorted(model.state_dict().items())}
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            raise CheckpointError(
                f'checkpoint {checkpoint.path}: {name} holds {count} non-finite values.'
            )
    stem = run_name(config, attention and attention['names'])
    dataset = _dataset_meta(cfg, meta)
    # one entry: safetensors writes several in an order that changes from process to process
    model_meta = dict(config=Path(config).stem, dataset_meta=dataset)
    if attention:
        model_meta['attention'] = attention
    if meta.get('data_set'):
        model_meta['data_set'] = meta['data_set']
    if forms := block_forms(model):
        model_meta['blocks'] = forms
    header = dict(mmattn=json.dumps(model_meta, sort_keys=True))
    buffer = BytesIO()
    torch.save(dict(state_dict=weights, meta=model_meta), buffer)
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
    card = _card(stem, Path(config).stem, trained, meta, dataset, checkpoint.path, paths)
    paths['card'] = paths['safetensors'].with_suffix('.md')
    paths['card'].write_text(card, encoding='utf-8')
    return paths


def upload(paths: dict[str, Path], repository: str, *, private: bool = False) -> str:
    """Upload published files to a repository of the Hugging Face Hub, created if missing.

    The card becomes the README if the repository has none. `mmattn.load_model(name,
    'hf://owner/repository')` loads from there.

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
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repository):
        raise UsageError(f'--hub {repository}: write owner/name.')
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise UsageError(
            '--hub: huggingface_hub is not installed. Run: pip install huggingface_hub'
        ) from error
    hub = HfApi()
    try:
        hub.create_repo(repository, exist_ok=True, private=private)
        existing = hub.list_repo_files(repository)
        files = {path.name: path for path in paths.values()}
        if 'README.md' not in existing:
            files['README.md'] = paths['card']
        for name, path in files.items():
            hub.upload_file(path_or_fileobj=path, path_in_repo=name, repo_id=repository)
    except (OSError, HfHubHTTPError, ValueError) as error:  # no network, token or permission
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise WriteError(
            f'cannot upload to {repository}: {reason} The files themselves are written.'
        ) from error
    return f'https://huggingface.co/{repository}'


def _write(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    path = folder / f'{stem}-{hashlib.sha256(data).hexdigest()[:8]}{suffix}'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise cannot_write(path, error, 'Choose another --out-dir.') from error
    return path


def _dataset_meta(cfg: Config, meta: dict) -> dict:
    """Class names, colours and licence, from the checkpoint or else from the config's data."""
    merged = {**dataset_meta(cfg), **meta.get('dataset_meta', {})}
    merged = tensors_to_lists(plain_items(merged, 'dataset_meta'))
    fields = {k: merged[k] for k in ('classes', 'palette', 'licence') if merged.get(k)}
    return json.loads(json.dumps(fields))  # tuples become lists: the same bytes every time


def _metrics(checkpoint: Path, stem: str) -> str:
    """The checkpoint's quality in Markdown: from a record of testing, else the training log."""
    digest = file_sha256(checkpoint)
    for folder in checkpoint.parent, Path('work_dirs') / stem:
        for path in sorted((folder / 'metrics').glob('*.json')):
            record = json.loads(path.read_text())
            if record.get('sha256') == digest:
                lines = '\n'.join(
                    f'| {k} | {"absent" if v is None else v} |'
                    for k, v in record['metrics'].items()
                    if '_time' not in k
                )
                return (
                    f'| metric | value |\n|---|---|\n{lines}\n\n'
                    f'By `{_without_machine(record["command"])}` on {record["hardware"]}, '
                    f'torch {record["torch"]}.'
                )
    original = facts_of(checkpoint).get('copy_of')  # best.pth where there are no links
    number = re.search(r'(\d+)$', Path(original).stem if original else checkpoint.resolve().stem)
    scalars = read_scalars(checkpoint.resolve().parent)
    for metric in 'mIoU', 'coco/bbox_mAP':
        if number and int(number.group()) in scalars.get(metric, {}):
            value = scalars[metric][int(number.group())]
            return f'{metric} {value} on the validation data, during training.'
    return 'Not measured: run `tools/test.py` and publish again.'


def _card(
    stem: str,
    config: str,
    cfg: Config,
    meta: dict,
    dataset: dict,
    checkpoint: Path,
    paths: dict[str, Path],
) -> str:
    blocks = meta.get('attention', {}).get('names')
    command = f'configs/{config}.py' + (f' --attention {blocks}' if blocks else '')
    sources = dict.fromkeys(map(_source, dataset_leaves(cfg.train_dataloader['dataset'])))
    portable = Config(_portable({k: v for k, v in cfg.to_dict().items() if k not in _RUN_KEYS}))
    files = '\n'.join(
        f'| `{p.name}` | {p.stat().st_size / 1e6:.1f} MB | `{sha256(p)}` |' for p in paths.values()
    )
    licence = f'\nLicence of the data: {dataset["licence"]}.\n' if 'licence' in dataset else ''
    return f"""# {stem}

Trained with mmattn, config `{command}`, iteration {meta.get('iter', 'unknown')}.

## Files

| file | size | sha256 |
|---|---|---|
{files}

## Metric

{_metrics(checkpoint, stem)}

## Data

{'; '.join(sources)}; {len(dataset['classes'])} classes:
{', '.join(dataset['classes'])}.
{licence}
## Command

```
{_without_machine(meta.get('command') or 'not recorded')}
```

Seed {meta.get('seed', 'not recorded')}.

## Config

```python
{portable.pretty_text.strip()}
```
"""


def _source(leaf: dict) -> str:
    """A dataset and its location, as `type` at `folder`, `file`."""
    kind = leaf['type'] if isinstance(leaf['type'], str) else leaf['type'].__name__
    paths = [leaf.get('data_root'), leaf.get('ann_file')]
    quoted = [f'`{_portable(path)}`' for path in paths if path]
    return f'`{kind}`' + (f' at {", ".join(quoted)}' if quoted else '')


def _portable(value):
    """The same structure without folders of this machine in its strings."""
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_portable(item) for item in value)
    return _without_machine(value) if isinstance(value, str) else value


def _without_machine(text: str) -> str:
    """The text with paths relative to the working folder, or as file names alone."""
    for folder in Path.cwd(), Path.home():
        if folder != Path(folder.anchor):
            text = text.replace(f'{folder}/', '').replace(str(folder), folder.name)
    return re.sub(r'(?<![\w./:-])/(?:[\w.@+ -]+/)*([\w.@+-]+)', r'\1', text)  # URLs stay


# keys that describe one run, not the model
_RUN_KEYS = (
    'work_dir',
    'experiment_name',
    'load_from',
    'resume',
    'launcher',
)
