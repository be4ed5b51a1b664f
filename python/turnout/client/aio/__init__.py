"""One of two clients: `aio` is for event loops and written by hand, `sync` is for threads and made of it by `unasync`."""
