"""Programs that run beside the server as small processes of their own.

They are started by `child_program.command` as `python -I -S`, see only the standard library, and import each other
and `..hardening` relatively (TID252 is off there), so that nothing of the server is loaded into them: they run as
`runners.child.MODULE`, where `sandbox_adapters` is no package.
"""
