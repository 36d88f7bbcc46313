"""The only door to the mount.

``door`` is what the rest of onesync sees, ``folder`` carries it out with system calls, and
``children`` runs ``folder`` in disposable processes so that a hung mount never hangs the daemon.
"""
