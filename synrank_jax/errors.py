"""The exceptions the commands turn into a clear message instead of a traceback."""


class UserError(ValueError):
    """Something the user can put right: the message names the place, the value and the way out."""


class HostLostError(UserError):
    """Another host is dead, late or never came: the run goes on when all are started again."""
