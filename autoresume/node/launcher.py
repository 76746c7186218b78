"""torchrun, made deaf to the signals that the daemon decides about.

Law: torchrun answers SIGTERM by killing its workers after 30 seconds, and dies of SIGUSR1. Here it
passes SIGTERM, SIGUSR1 and SIGUSR2 on to its parent, the node daemon, so that a signal does the same
whichever process it reaches. It still ends on SIGINT, SIGQUIT, and on SIGHUP, which it gets when the
daemon dies. This module runs in a process of its own: `python -m autoresume.node.launcher ARGUMENTS`.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


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
    run.main(arguments)


if __name__ == "__main__":
    main()
