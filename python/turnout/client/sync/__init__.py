# Made of aio/__init__.py by `python -m turnout.client.unasync`: change that, and run it.
"""One of two clients: `aio` is for event loops and written by hand, `sync` is for threads and made of it by `unasync`."""
