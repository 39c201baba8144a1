"""How fast a world streams here: frames a second, latency, several viewers, memory. Speed is a ratio within one run."""
