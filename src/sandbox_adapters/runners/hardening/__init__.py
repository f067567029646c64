"""Walls that stand beside the namespaces: system call filter, Landlock scopes, cgroups.

The standard library only and relative imports, so that the small programs beside the server can load them too.
"""
