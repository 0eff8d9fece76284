"""Readers of files that execute nothing, put in place for the whole process by `install`.

`mmengine.fileio.load`, through which configs, annotations, class weights and proposals are read,
executes what is in a pickle, and what a tag of YAML names. Writing is as before. mmengine's loader
of checkpoints gets the readers of `mmattn.checkpoint.read`. pycocotools opens JSON in whatever
encoding the system has; it reads UTF-8 then, with or without a byte-order mark.
"""

from functools import partial

import yaml
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import PickleHandler, YamlHandler
from pycocotools import coco

from mmattn.checkpoint.read import replace_loader
from mmattn.errors import DataError


def install() -> None:
    """Replace mmengine's and pycocotools' readers in this process; a second call changes nothing.

    The command line, `Runner` and `load_config` call it, so it is in place before a config,
    a checkpoint or a data set is read. Importing mmattn does not.
    """
    register_handler(['yaml', 'yml'])(SafeYaml)
    register_handler(['pickle', 'pkl'])(NoPickle)
    replace_loader()
    coco.open = _open_utf8  # in that module's name space alone


_open_utf8 = partial(open, encoding='utf-8-sig')


class _Dumper(yaml.SafeDumper):
    """Writes a tuple as a list, as YAML has tuples only by a tag."""


_Dumper.add_representer(tuple, _Dumper.represent_list)


class SafeYaml(YamlHandler):
    """Reads values, no objects."""

    def load_from_fileobj(self, file, **_):
        return yaml.safe_load(file)

    def dump_to_fileobj(self, obj, file, **_) -> None:
        yaml.dump(obj, file, Dumper=_Dumper)

    def dump_to_str(self, obj, **_) -> str:
        return yaml.dump(obj, Dumper=_Dumper)


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
