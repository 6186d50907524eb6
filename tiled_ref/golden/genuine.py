"""The second bundle."""


class Genuine:
    """Later."""
