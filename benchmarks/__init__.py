"""What it costs, against what this machine can do: each module is a command."""
