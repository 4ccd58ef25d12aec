"""The one exception that a wrong use raises."""


class SpecdecError(ValueError):
    """A wrong use: the message is one line that names the argument, the value it got and what it takes."""
