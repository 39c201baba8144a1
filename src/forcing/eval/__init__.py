"""Is it any good: measurements against a world whose truth is known."""
