"""The Hugging Face Hub: access to its package, and the methods of what can be shared there."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import mmattn
from mmattn.compat import command, is_installed
from mmattn.errors import CheckpointError, MmattnError, UsageError

T = TypeVar('T', bound='HubMixin')
_REPOSITORY = re.compile(r'\w[\w.-]*/\w[\w.-]*')


class HubMixin:
    """Mixin: `save_pretrained`, `from_pretrained` and `push_to_hub`, as of huggingface_hub's mixin.

    Saving to and loading from a folder needs no hub and no huggingface_hub.
    """

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write `config.json`, `model.safetensors` and a card, see `mmattn.save_pretrained`."""
        mmattn.save_pretrained(self, folder, **options)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload these files in one commit, see `mmattn.push_to_hub`."""
        return mmattn.push_to_hub(self, repository, **options)

    @classmethod
    def from_pretrained(cls: type[T], source: str | Path, **options: Any) -> T:
        """Load one of this class from a folder or a repository, see `mmattn.from_pretrained`.

        Raises:
            UsageError, CheckpointError: as that; what is there is of another class.
        """
        module = mmattn.from_pretrained(source, **options)
        if not isinstance(module, cls):
            name = type(module).__name__
            raise CheckpointError(
                f'{source} holds a {name}, not a {cls.__name__}. Load it with '
                'mmattn.from_pretrained.'
            )
        return module


def is_repository(name: str) -> bool:
    """Whether a name is that of a repository of the hub, owner/name."""
    return _REPOSITORY.fullmatch(name) is not None


def check_license(license: str | None) -> None:
    """Refuse a licence that no card would name.

    Raises:
        UsageError: huggingface_hub, which writes it, is not installed.
    """
    if license and not is_installed('huggingface_hub'):
        raise UsageError(
            f'license {license}: huggingface_hub, which writes it into the card, is not installed. '
            f'Run: {command("hub", "huggingface_hub")}'
        )


def card_metadata(name: str, results: list[dict[str, Any]] = (), **fields: Any) -> str:
    """The block of YAML at the head of a model card, which the hub reads.

    Args:
        name: name of the model.
        results: arguments of `EvalResult`, for the index of models.
        **fields: other arguments of `ModelCardData`; those that are None or empty are left out.

    Returns:
        the block with the blank line after it; '' where huggingface_hub is not installed.
    """
    if not is_installed('huggingface_hub'):
        return ''
    from huggingface_hub import EvalResult, ModelCardData

    fields = {key: value for key, value in fields.items() if value}
    if results:
        fields |= dict(model_name=name, eval_results=[EvalResult(**row) for row in results])
    return f'---\n{ModelCardData(library_name="mmattn", **fields).to_yaml()}\n---\n\n'


@contextmanager
def hub_access(
    use: str, failure: str, kind: type[MmattnError], remedy: str = ''
) -> Iterator[ModuleType]:
    """Import huggingface_hub for the block inside, and raise its errors as ours.

    Args:
        use: what needs the package, for the message where it is missing.
        failure: what failed, such as 'cannot upload to a/b'.
        kind: class of the error.
        remedy: a sentence that follows the reason.

    Raises:
        UsageError: huggingface_hub is not installed.
        MmattnError: of `kind`; no network, no such repository or file, no permission.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise UsageError(
            f'{use}: huggingface_hub is not installed. Run: {command("hub", "huggingface_hub")}'
        ) from error
    kinds: tuple[type[BaseException], ...] = (OSError, HfHubHTTPError, ValueError)
    for transport in 'httpx', 'httpx2':  # of huggingface_hub from 1.0, from 2.0
        if transport in sys.modules:
            kinds += (sys.modules[transport].HTTPError,)
    try:
        yield huggingface_hub
    except kinds as error:
        text = str(error).strip()
        reason = text.splitlines()[0] if text else repr(error)
        raise kind(f'{failure}: {reason}{f" {remedy}" if remedy else ""}') from error
