"""The engine of the daemon: a child process that holds the model, and the client that keeps it alive.

The main process imports `client`, `messages` and `wire`, none of which knows numpy; `child` is the other end.
"""
