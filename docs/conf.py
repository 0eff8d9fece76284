"""Settings of the site: `make docs` builds it, without a network."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / '_ext')]

import site_pages  # noqa: E402

import mmattn  # noqa: E402

project = 'mmattn'
author = 'The mmattn authors'
version = release = mmattn.__version__
repository = site_pages.repository_address()

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
    'site_pages',
]
exclude_patterns = ['_build', '_ext', '_static', '**/.ipynb_checkpoints']
smartquotes = False  # they would change 'identity' in a docstring
default_role = 'code'  # docstrings write code in single backticks

html_theme = 'furo'
html_title = f'mmattn {version}'
html_static_path = ['_static']
html_css_files = ['site.css']
html_copy_source = False
html_show_copyright = False
html_math_renderer = 'mathml'  # of site_pages

myst_enable_extensions = ['colon_fence', 'dollarmath']
myst_heading_anchors = 4  # links such as guide.md#reading-an-attention-map, as GitHub has them
# pages with code run once, until they change; notebooks are shown with the outputs that they hold
nb_execution_mode = 'cache'
nb_execution_excludepatterns = ['*.ipynb', 'notebooks/*']
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_merge_streams = True

autodoc_typehints_format = 'short'
autodoc_preserve_defaults = True
autodoc_member_order = 'bysource'
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88

# Types of other packages, whose inventories are in the network.
nitpick_ignore_regex = [
    (r'py:.*', r'(torch|nn|numpy|np|mmengine|mmdet|mmseg|collections|pathlib|typing)\..*'),
    (r'py:.*', r'(Tensor|Path|Sequence|Iterator|Callable|Config|Hook|BaseDataElement)'),
]
