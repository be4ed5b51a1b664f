"""How long a test will take."""


def size_test() -> None:
    """Being written."""
