"""One operator for five kinds of scientific data: pretrain, fine-tune, simulate.

>>> import sciml
>>> sciml.__version__
'0.1.0'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sciml.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str) -> Predictor:
    """Open a checkpoint (or a run folder: its selected checkpoint) as a `Predictor`; runs no code from the file.

    Raises `sciml.errors.InputError` if a file is missing, altered or of another schema version.
    """
    from sciml.checkpoint import load as load_checkpoint

    return load_checkpoint(path)


def __dir__() -> list[Any]:
    return list(__all__)
