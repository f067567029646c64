"""Programs that run beside the server as small processes of their own.

They are started by `child_program.command` as `python -I -S`, see only the standard library, and import each other
and `..hardening` relatively, so that nothing of the server is loaded into them.
"""
