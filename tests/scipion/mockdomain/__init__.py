"""A Scipion domain of the test's own; runs in Scipion's interpreter."""

from __future__ import annotations

from typing import Any, ClassVar

import pyworkflow.protocol as pwprot
from pyworkflow.plugin import Domain as PluginDomain
from pyworkflow.plugin import Plugin as BasePlugin
from pyworkflow.viewer import Viewer
from pyworkflow.wizard import Wizard
from pyworkflowtests import objects


class Domain(PluginDomain):  # type: ignore[misc]
    """What ``SCIPION_DOMAIN=mockdomain`` names."""

    _name = __name__
    _objectClass = objects.MockObject
    _protocolClass = pwprot.Protocol
    _viewerClass = Viewer
    _wizardClass = Wizard
    _baseClasses: ClassVar[dict[str, Any]] = {
        name: value for name, value in vars(objects).items() if name.startswith("Mock")
    }


class Plugin(BasePlugin):  # type: ignore[misc]
    """The domain's plugin: itself."""
