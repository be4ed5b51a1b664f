"""The HTTP face of Turnout: predictions answered by `front`, everything else by a Litestar application."""
