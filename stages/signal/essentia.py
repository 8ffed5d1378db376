"""The optional Essentia library (AGPL-3.0), imported only by the stages that need it, with its log switched off."""

from types import ModuleType

from stages.libraries import Library

ESSENTIA = Library("Essentia", module="essentia", package="essentia", extra="essentia")


def load_essentia() -> tuple[ModuleType, str]:
    """Essentia's `standard` module, and its version."""
    import essentia

    essentia.log.infoActive = False  # before `standard`, which logs while it is imported
    essentia.log.warningActive = False
    import essentia.standard

    return essentia.standard, essentia.__version__
