"""`python -m demo`: the demo, or one line that says what is missing."""

import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules are imported there is nothing to clean up
try:
    from demo.demo import main
except ModuleNotFoundError as error:
    sys.exit(f"demo: the module {error.name!r} is missing. `make demo` makes an environment that has it.")

if __name__ == "__main__":
    main()
