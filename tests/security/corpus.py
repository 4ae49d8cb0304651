"""All attacks, by name."""

from __future__ import annotations

from tests.security import files, models
from tests.security.attack import Attack

CORPUS = {name: it for module in (models, files) for name, it in vars(module).items() if isinstance(it, Attack)}
