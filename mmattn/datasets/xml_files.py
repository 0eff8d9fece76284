"""Reading XML of strangers: no entities, which can expand without end."""

import xml.etree.ElementTree as ET
from pathlib import Path

from mmattn.errors import DataError


def read_xml(path: Path) -> ET.Element:
    """The root element of an XML file in UTF-8.

    Raises:
        DataError: it is no text, not valid, or declares entities.
    """
    try:
        text = path.read_text('utf-8-sig')
    except UnicodeDecodeError as error:
        raise DataError(f'{path} is no text in UTF-8: {error.reason}. Get it again.') from error
    if '<!DOCTYPE' in text or '<!ENTITY' in text:
        raise DataError(f'{path} declares entities, which no annotation needs. Get it again.')
    try:
        return ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:
        raise DataError(f'{path} is not valid XML: {error}. Get it again.') from error
