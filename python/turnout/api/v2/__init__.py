"""The Open Inference Protocol, version 2, over REST: another dialect of the same service."""
