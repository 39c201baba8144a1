"""Streaming: one viewer's clip without an end, in as few passes as the method allows. No sockets here."""
