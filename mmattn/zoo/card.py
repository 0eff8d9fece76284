"""Model cards: metadata for the hub, and the text."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config
from torch import nn

from mmattn.blocks import AttentionBlock
from mmattn.checkpoint.manifest import facts_of, file_sha256
from mmattn.config.leaves import dataset_leaves
from mmattn.files import sha256
from mmattn.hub import card_metadata
from mmattn.visualization.curves import read_scalars

# metrics in the index of models, where they were measured, and what the hub calls them
_INDEXED = {
    'mIoU': 'mean_iou', 'mAcc': 'mean_accuracy', 'aAcc': 'accuracy', 'coco/bbox_mAP': 'mAP',
    'coco/bbox_mAP_50': 'mAP', 'coco/segm_mAP': 'mAP', 'coco/segm_mAP_50': 'mAP',
}  # fmt: skip
_LICENCES = {
    'CC BY-NC 4.0': 'cc-by-nc-4.0', 'CC BY 4.0': 'cc-by-4.0', 'CC0': 'cc0-1.0', 'MIT': 'mit',
}  # fmt: skip
# keys that describe one run, not the model
_RUN_KEYS = ('work_dir', 'experiment_name', 'load_from', 'resume', 'launcher')


@dataclass
class Metrics:
    """The measured quality of weights.

    Attributes:
        values: name -> value.
        text: the same in Markdown, with the command.
        split: 'test', or 'validation' for a figure of the training log.
    """

    values: dict[str, float] = field(default_factory=dict)
    text: str = 'Not measured: run `tools/test.py` and publish again.'
    split: str = 'test'


def metrics_table(values: dict[str, float | None]) -> str:
    """Metrics as a table in Markdown; None is shown as absent."""
    rows = '\n'.join(f'| {k} | {"absent" if v is None else v} |' for k, v in values.items())
    return f'| metric | value |\n|---|---|\n{rows}'


def measured_metrics(checkpoint: Path, stem: str) -> Metrics:
    """The checkpoint's quality: from a record of testing, else the training log."""
    digest = file_sha256(checkpoint)
    for folder in checkpoint.parent, Path('work_dirs') / stem:
        for path in sorted((folder / 'metrics').glob('*.json')):
            record = json.loads(path.read_text())
            if record.get('sha256') == digest:
                values = {k: v for k, v in record['metrics'].items() if '_time' not in k}
                text = (
                    f'{metrics_table(values)}\n\n'
                    f'By `{without_machine(record["command"])}` on {record["hardware"]}, '
                    f'torch {record["torch"]}.'
                )
                return Metrics({k: v for k, v in values.items() if v is not None}, text)
    original = facts_of(checkpoint).get('copy_of')  # best.pth where there are no links
    number = re.search(r'(\d+)$', Path(original).stem if original else checkpoint.resolve().stem)
    scalars = read_scalars(checkpoint.resolve().parent)
    for metric in 'mIoU', 'coco/bbox_mAP':
        if number and int(number.group()) in scalars.get(metric, {}):
            value = scalars[metric][int(number.group())]
            text = f'{metric} {value} on the validation data, during training.'
            return Metrics({metric: value}, text, 'validation')
    return Metrics()


def license_id(dataset: dict, given: str | None = None) -> str | None:
    """The hub's name of a licence: the one given, or that of the data; None if unknown."""
    text = dataset.get('licence', '')
    known = next((name for start, name in _LICENCES.items() if text.startswith(start)), None)
    return given or known or ('other' if text else None)


def pipeline_tag(network: nn.Module) -> str:
    """The hub's task of a detector or segmentor."""
    has_masks = getattr(network, 'with_mask', False) or hasattr(network, 'panoptic_head')
    is_detector = hasattr(network, 'bbox_head') or hasattr(network, 'roi_head')
    return 'object-detection' if is_detector and not has_masks else 'image-segmentation'


def dataset_names(loader: dict) -> list[str]:
    """Names of the data sets of a loader: their folder's, or that of their class."""
    names = []
    for leaf in dataset_leaves(loader['dataset']):
        kind = leaf['type'] if isinstance(leaf['type'], str) else leaf['type'].__name__
        folder = Path(leaf.get('data_root') or '').name
        name = folder or kind.rpartition('.')[2].removesuffix('Dataset')
        names.append(re.sub(r'[^\w.-]+', '-', name).lower())
    return list(dict.fromkeys(names))


def network_metadata(
    name: str,
    network: nn.Module,
    cfg: Config,
    dataset: dict,
    metrics: Metrics,
    license: str | None = None,
) -> str:
    """The metadata of a network's card, see `card_metadata`.

    Args:
        name: name of the model.
        network: the network.
        cfg: its config.
        dataset: class names and licence of its data.
        metrics: its measured quality, for the index of models.
        license: the hub's name of a licence; None for that of the data.
    """
    task, tested = pipeline_tag(network), dataset_names(cfg.test_dataloader)[0]
    known = [metric for metric in _INDEXED if metric in metrics.values]
    results = [
        dict(
            task_type=task,
            dataset_type=tested,
            dataset_name=tested,
            dataset_split=metrics.split,
            metric_type=_INDEXED.get(metric, metric),
            metric_name=metric,
            metric_value=metrics.values[metric],
        )
        for metric in known or [*metrics.values][:1]
    ]
    blocks = {type(m).__name__ for m in network.modules() if isinstance(m, AttentionBlock)}
    package = 'mmsegmentation' if hasattr(network, 'decode_head') else 'mmdetection'
    licence = license_id(dataset, license)
    return card_metadata(
        name,
        results,
        license=licence,
        license_name='see-the-card' if licence == 'other' else None,
        pipeline_tag=task,
        tags=['attention', package, *sorted(blocks)],
        datasets=dataset_names(cfg.train_dataloader),
    )


def network_card(
    stem: str,
    command: str,
    cfg: Config,
    meta: dict,
    dataset: dict,
    metrics: Metrics,
    paths: list[Path],
    head: str = '',
) -> str:
    """The card of a network.

    Args:
        stem: name of the model.
        command: config and options that it was trained with.
        cfg: that config.
        meta: facts that the training recorded.
        dataset: class names and licence of its data.
        metrics: its measured quality.
        paths: files of weights.
        head: metadata for the hub.
    """
    sources = dict.fromkeys(map(_source, dataset_leaves(cfg.train_dataloader['dataset'])))
    files = '\n'.join(
        f'| `{p.name}` | {p.stat().st_size / 1e6:.1f} MB | `{sha256(p)}` |' for p in paths
    )
    licence = f'\nLicence of the data: {dataset["licence"]}.\n' if 'licence' in dataset else ''
    return f"""{head}# {stem}

Trained with mmattn, config `{command}`, iteration {meta.get('iter', 'unknown')}.

## Files

| file | size | sha256 |
|---|---|---|
{files}

## Metric

{metrics.text}

## Data

{'; '.join(sources)}; {len(dataset['classes'])} classes:
{', '.join(dataset['classes'])}.
{licence}
## Command

```
{without_machine(meta.get('command') or 'not recorded')}
```

Seed {meta.get('seed', 'not recorded')}.

## Config

```python
{portable_config(cfg).pretty_text.strip()}
```
"""


def portable_config(cfg: Config) -> Config:
    """The config without keys of one run and without folders of this machine."""
    content = {k: v for k, v in cfg.to_dict().items() if k not in _RUN_KEYS}
    visualizer = content.get('visualizer')
    if visualizer and visualizer.get('name') == cfg.get('experiment_name'):
        content['visualizer'] = {k: v for k, v in visualizer.items() if k != 'name'}
    return Config(_portable(content))


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
    return without_machine(value) if isinstance(value, str) else value


def without_machine(text: str) -> str:
    """The text with paths relative to the working folder, or as file names alone."""
    for folder in Path.cwd(), Path.home():
        if folder != Path(folder.anchor):
            text = text.replace(f'{folder}/', '').replace(str(folder), folder.name)
    return re.sub(r'(?<![\w./:-])/(?:[\w.@+ -]+/)*([\w.@+-]+)', r'\1', text)  # URLs stay
