"""Everything that is wrong with a source: collected, listed by kind, and what becomes of it."""

from pathlib import Path

from mmattn.errors import printable

_SHOWN = 20  # problems of a kind in the output; the report has all
KEPT, CHANGED, DROPPED, REFUSED = 'kept', 'changed', 'dropped', 'ends the import'

# Kind -> what becomes of it, and its heading. docs/own_data.md has the same table.
KINDS = {
    'unused class': (KEPT, 'classes without an object'),
    'background': (KEPT, 'images without an object, kept as background'),
    'name': (KEPT, 'file names outside ASCII'),
    'link': (KEPT, 'links, followed: the image itself is copied'),
    'backslash': (KEPT, 'paths with backslashes, read as /'),
    'elsewhere': (KEPT, 'images found in another folder than the annotations say'),
    'rotated': (KEPT, 'images with an EXIF orientation, read as it rotates them'),
    'duplicate': (KEPT, 'ids that occur twice, numbered anew'),
    'annotators': (KEPT, 'images annotated several times, the first is taken'),
    'clipped': (CHANGED, 'boxes and outlines that leave their image, clipped to it'),
    'renamed': (CHANGED, 'file names that a list of names cannot hold'),
    'empty box': (DROPPED, 'boxes without area'),
    'outside': (DROPPED, 'objects outside their image'),
    'short polygon': (DROPPED, 'polygons of fewer than three points'),
    'invalid': (DROPPED, 'objects with a missing or invalid field'),
    'shape': (DROPPED, 'shapes that are neither box, polygon nor mask'),
    'no mask': (DROPPED, 'objects with a box alone'),
    'orphan': (DROPPED, 'annotations of an image that is not listed'),
    'no image': (DROPPED, 'annotations whose image is missing'),
    'not listed': (DROPPED, 'images without annotation'),
    'size': (DROPPED, 'images of another size than their annotations'),
    'damaged image': (DROPPED, 'images that cannot be read'),
    'file': (REFUSED, 'annotation files that cannot be read'),
    'large': (REFUSED, 'images that are too large'),
    'class': (REFUSED, 'labels out of range'),
    'id': (REFUSED, 'ids that several images or classes share'),
}


class Problems:
    """Problems of a source by kind.

    Args:
        root: folder that paths in messages are relative to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._texts: dict[str, list[str]] = {}

    def add(self, kind: str, file: Path, where: str, text: str) -> None:
        """Add a problem.

        Args:
            kind: key of `KINDS`.
            file: file that it is in.
            where: id and field; '' for the file as a whole.
            text: what is wrong.
        """
        name = file.relative_to(self.root) if file.is_relative_to(self.root) else file
        parts = [str(name) if str(name) != '.' else '', where, text]
        self._texts.setdefault(kind, []).append(printable(': '.join(filter(None, parts))))

    def count(self, kind: str) -> int:
        """Number of problems of a kind."""
        return len(self._texts.get(kind, ()))

    def lines(self, limit: int | None = _SHOWN) -> list[str]:
        """All problems: a heading with the count of each kind, then its first `limit` ones."""
        lines = []
        for kind, (outcome, heading) in KINDS.items():
            texts = self._texts.get(kind, [])
            if texts:
                lines.append(f'{len(texts)} {heading} ({outcome}):')
                lines += [f'  {text}' for text in texts[:limit]]
                if limit and len(texts) > limit:
                    lines.append(f'  and {len(texts) - limit} more')
        return lines

    @property
    def is_refused(self) -> bool:
        """Whether one of them ends the import."""
        return any(KINDS[kind][0] == REFUSED for kind in self._texts)

    def first_refused(self) -> str:
        """The first problem that ends the import, as a sentence, and how many there are."""
        texts = [
            text
            for kind in KINDS
            if KINDS[kind][0] == REFUSED
            for text in self._texts.get(kind, ())
        ]
        more = f' ({len(texts)} problems end the import)' if len(texts) > 1 else ''
        return f'{texts[0]}{more}.'
