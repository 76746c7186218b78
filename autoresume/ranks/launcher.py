"""torchrun, made deaf to the signals that the daemon decides about.

Law: torchrun answers SIGTERM by killing its workers after 30 seconds, and dies of SIGUSR1. Here it
passes SIGTERM, SIGUSR1 and SIGUSR2 on to its parent, the node daemon, so that a signal does the same
whichever process it reaches. It still ends on SIGINT, SIGQUIT, and on SIGHUP, which it gets when the
daemon dies. Where somebody else took the port at which the nodes were to meet, it ends with a code of its
own, since a round on another port mends that. This module runs in a process of its own:
`python -m autoresume.ranks.launcher ARGUMENTS`.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from types import FrameType

from autoresume.errors import EXIT_PORT_TAKEN


def main() -> None:
    daemon = os.getppid()

    def forward(number: int, frame: FrameType | None) -> None:
        os.kill(daemon, number)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, forward)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGINT,SIGHUP,SIGQUIT"
    # Ranks that torchrun restarts in place would find the dead ranks' addresses in a store that it shares.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    from torch.distributed import run  # slow to import: after the handlers are on

    arguments = sys.argv[1:]
    if "signals_to_handle" in vars(run.get_args_parser().parse_args(["script"])):
        arguments = ["--signals-to-handle", "SIGINT,SIGHUP,SIGQUIT", *arguments]
    from torch.distributed import DistNetworkError

    try:
        run.main(arguments)
    except DistNetworkError as error:
        # Torch tells errno by its name only: "... port: 34247, ... code: -98, name: EADDRINUSE, ..."
        if errno.errorcode[errno.EADDRINUSE] not in str(error):
            raise
        print(f"autoresume: the port at which the nodes were to meet is taken: {error}", file=sys.stderr)
        sys.exit(EXIT_PORT_TAKEN)


if __name__ == "__main__":
    main()
