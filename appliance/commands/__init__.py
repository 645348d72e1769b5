"""The subcommands of `outpost`, one file each."""
