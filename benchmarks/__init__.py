"""Every speed that the README claims, measured beside the peers in the same run (`make bench`).

A benchmark is not a test: nothing here asserts a time. Each subject is a real process on the
loopback interface; what is compared is CPU time of the whole process tree, latency added over
talking to the upstream directly, and tokens per second of a real model.
"""
