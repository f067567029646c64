"""The core of Sandbox: domain, ports and use cases, without I/O. Import names from their modules."""
