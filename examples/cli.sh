#!/bin/sh
# The command line: the same policy and runner, without a server.
set -e
sandbox run -- python3 -c 'print(6 * 7)'              # both outputs live, the program's exit code
sandbox run -c 'seq 3 | tac'                          # shell text
sandbox run --timeout 1 -c 'sleep 60' || echo "exit $?"   # 124: ended at its timeout
sandbox run --json -c 'echo hi'                       # events, one JSON object a line
sandbox doctor                                        # what this machine can enforce
