"""The harness is no part of the installed package: it is found from the checkout's root."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
