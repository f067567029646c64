"""The domain: values, rules and the Execution aggregate. Standard library only, no I/O."""
