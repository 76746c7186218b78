"""What can go wrong, as the user reads it; `command_line.main` prints it and exits with its status."""


class ClusterError(Exception):
    """The command could not do what it was asked; the message says why and what to do."""

    exit_status = 1


class PackagesMissing(ClusterError):
    """Slurm is not installed and can't be installed from here."""

    exit_status = 3
