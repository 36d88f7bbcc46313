"""onesync deploys a OneData folder on a node, keeps it in sync and undeploys it."""

__version__ = "0.1.0"
