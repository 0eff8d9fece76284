"""Readers of files, made safe for the whole process: importing this is enough.

`mmengine.fileio.load`, through which configs, annotations, class weights and proposals are read,
executes what is in a pickle, and what a tag of YAML names. Writing is as before. pycocotools opens
JSON in whatever encoding the system has; it reads UTF-8 now, with or without a byte-order mark.
"""

from functools import partial

import yaml
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import PickleHandler, YamlHandler
from pycocotools import coco

from mmattn.errors import DataError

coco.open = partial(open, encoding='utf-8-sig')  # in that module's name space alone


class _Dumper(yaml.SafeDumper):
    """Writes a tuple as a list, as YAML has tuples only by a tag."""


_Dumper.add_representer(tuple, _Dumper.represent_list)


@register_handler(['yaml', 'yml'])
class SafeYaml(YamlHandler):
    """Reads values, no objects."""

    def load_from_fileobj(self, file, **_):
        return yaml.safe_load(file)

    def dump_to_fileobj(self, obj, file, **_) -> None:
        yaml.dump(obj, file, Dumper=_Dumper)

    def dump_to_str(self, obj, **_) -> str:
        return yaml.dump(obj, Dumper=_Dumper)


@register_handler(['pickle', 'pkl'])
class NoPickle(PickleHandler):
    """Writes pickles and reads none."""

    def load_from_fileobj(self, file, **_):
        raise DataError(
            f'{getattr(file, "name", "a file that the config names")} is a pickle: it is refused, '
            'as loading it could execute code. Write it as JSON.'
        )

    def load_from_path(self, filepath, **_):
        with open(filepath, 'rb') as file:
            self.load_from_fileobj(file)
