"""What a process counts of its work, and how it tells it: numbers only, never an id, a command or a caller's name."""
