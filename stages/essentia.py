"""The optional Essentia library (AGPL-3.0), opened quietly and only by the stages that need it."""

from types import ModuleType


def load_essentia() -> tuple[ModuleType, str]:
    """Essentia's `standard` module with its log switched off, and its version.

    Raises:
        RuntimeError: Essentia is not installed; the message says how to install it or do without.
    """
    try:
        import essentia

        essentia.log.infoActive = False  # before `standard`, which logs while it is imported
        essentia.log.warningActive = False
        import essentia.standard
    except ImportError as error:
        raise RuntimeError(
            "Essentia is not installed: pip install songmill[essentia], or choose another engine"
        ) from error
    return essentia.standard, essentia.__version__
