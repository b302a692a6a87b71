"""bulktag: tag buckets of images with Apache Beam."""

import pathlib

_FOLDER = pathlib.Path(__file__).resolve().parent

__version__ = (_FOLDER / "VERSION").read_text(encoding="utf-8").strip()

# In a source checkout the rooms lie beside this folder instead of inside it (setup.py maps them on installation).
# Python processes started in the checkout find this package first, so it must find its rooms without installation.
if (_FOLDER.parent / "setup.py").exists() and (_FOLDER.parent / "transforms").is_dir():
    __path__.append(str(_FOLDER.parent))
