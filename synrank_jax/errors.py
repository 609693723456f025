"""The one exception the commands turn into a clear message instead of a traceback."""


class UserError(ValueError):
    """Something the user can put right: the message names the place, the value and the way out."""
