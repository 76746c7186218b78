"""Poor man's configurator, after nanoGPT's: `key=value` arguments override the globals of who execs this."""

import ast
import sys

for argument in sys.argv[1:]:
    key, _, text = argument.removeprefix("--").partition("=")
    if key not in globals():
        raise ValueError(f"unknown setting {key!r}")
    value = ast.literal_eval(text) if not isinstance(globals()[key], str) else text
    exec(f"{key} = {value!r}")
