"""From arguments to a command to an exit status."""

from __future__ import annotations

import sys
from pathlib import Path

from one_machine import cluster, options
from one_machine.errors import ClusterError
from one_machine.layout import Layout


def main() -> None:
    arguments = options.parser().parse_args()
    try:
        layout = Layout(Path(arguments.dir).absolute())
        if arguments.command == "up":
            cluster.up(layout, options.chosen(arguments))
        elif arguments.command == "down":
            cluster.down(layout)
        elif arguments.command == "status":
            sys.exit(0 if cluster.status(layout) else 1)
        else:
            cluster.env(layout)
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except OSError as error:  # a full disk, a directory closed to us: the message tells it all
        print(f"cluster: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
