# SPDX-License-Identifier: MIT
"""Compare the public headers with both baselines, or write these: scripts/abi-baseline.

usage: baseline.py [--update | --print]
"""

import argparse
import sys
import tempfile

import abi
import dump


def main():
    parser = argparse.ArgumentParser(
        prog="abi-baseline", description="check, print or update the ABI baselines"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--update", action="store_true", help="write the baselines")
    action.add_argument("--print", action="store_true", help="print what the headers say now")
    args = parser.parse_args()

    lines = abi.describe(abi.INCLUDE, abi.MAP)
    if args.print:
        print("\n".join(lines))
        return 0
    gone, added = abi.compare(abi.read_baseline(abi.BASELINE), lines)
    for line in gone:
        print(f"-{line}")
    for line in added:
        print(f"+{line}")
    with tempfile.TemporaryDirectory() as scratch:
        made = dump.dump(dump.stub(abi.INCLUDE, abi.MAP, scratch), scratch)
        verdict, report = dump.compare(dump.BASELINE, made)
        for line in report:
            print(line)
        if args.update:
            abi.write_baseline(abi.BASELINE, lines)
            dump.write_baseline(dump.BASELINE, made)
            print(f"{len(lines)} lines, {len(added)} added, {len(gone)} removed")
            return 0
    return 1 if gone or added or verdict != "same" else 0


if __name__ == "__main__":
    sys.exit(main())
