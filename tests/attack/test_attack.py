#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Attacks on the sandbox, each also tried without one: where it does not succeed
without, that it fails in the sandbox proves nothing.

usage: test_attack.py [--controls] [--only REGEX]

--controls tries everything without the sandbox only. What this machine cannot host is
named in lines "SKIP-CANNOT: case: reason"; the sandbox is attacked all the same."""

import argparse
import concurrent.futures
import os
import re
import sys
import traceback

import acts
import arena as arenas
import scenarios
import tap

WORKERS = min(4, 2 * len(os.sched_getaffinity(0)))


def values(arena, group):
    """What stands for the words in braces."""
    sandbox, victim, listeners = arena.sandbox, arena.victim, arena.listeners
    found = {
        "O": arena.outside,
        "W": arena.work,
        "base": arena.base,
        "tag": arena.tag,
        "backwards": arena.token[::-1],
        "victim": victim.pid,
        "address": victim.address,
        "key": victim.key,
        "queue": victim.queue,
        "first": 1 if sandbox else victim.pid,
        "ro": "/usr" if sandbox else "ro",
        "abstract": listeners.abstract,
        "abstract_dgram": listeners.abstract_dgram,
        "address4": listeners.address4(),
        "helper": os.path.dirname(arenas.ATTACK),
    }
    for name in ("tcp4", "tcp6", "mptcp", "tcp4_any"):
        found[name] = listeners.port(name)
    return found


def run_group(group, mode):
    """Try all acts of a group at once: {act: what the tool said of it}."""
    arena = arenas.Arena(mode)
    lines = {}
    try:
        words = values(arena, group)
        for name in ("scratch", "scratch2"):
            arena.write(os.path.join(arena.outside, name), "nothing\n", 0o666)
        arena.make_dir(os.path.join(arena.outside, "dir"), 0o777)
        arena.outside_changed()
        said = {}
        for act in group.acts:
            if act.ends and arena.sandbox:
                continue
            text = (act.inside if arena.sandbox else act.words).format(**words)
            said[act] = text
        before = group.before if not arena.sandbox and arenas.ROOT else ""
        tries = arena.acts(*said.values())
        command = f"O='{arena.outside}'; set -- {mode}\n"
        if before:
            script = arena.write("control.sh", f"O='{arena.outside}'\n{group.setup}\n{tries}\n")
            command += f"{before} bash {script} control"
        else:
            command += f"{group.setup}\n{tries}"
        command += f"\nrm -f /usr/attack-{arena.tag}; echo THE-END"
        outcome = arena.run(command, "--timeout-ms", round(40000 * arenas.STRETCH))
        for directory in ("/usr", "/usr/local", "/etc", "/root", "/boot", "/var/tmp"):
            path = f"{directory}/attack-{arena.tag}"
            if os.path.lexists(path):
                os.unlink(path)
                arena.breach(f"{path} was made")
        if b"THE-END" not in outcome.out:
            raise arenas.Inconclusive(f"not all was tried: {outcome}")
        output = outcome.out.decode(errors="replace").splitlines()
        for act, text in said.items():
            for line in output:
                if line.startswith((f"BREACH {text}:", f"held {text}:")):
                    lines[act] = line
        for folder, dirs, names in os.walk(arena.work):
            for name in dirs + names:
                mode_bits = os.lstat(os.path.join(folder, name)).st_mode
                if mode_bits & 0o6000 or mode_bits & 0o170000 in (0o020000, 0o060000):
                    arena.breach(f"{name} in the work directory has mode {mode_bits:o}")
        if arena.sandbox and outcome.result.get("backend") != arenas.BACKEND:
            arena.breach(f"it ran on the backend {outcome.result.get('backend')}")
    finally:
        arena.close()
    return lines, arena.breaches


def run_scenario(scenario, mode):
    arena = arenas.Arena(mode, **scenario.arena)
    try:
        scenario.function(arena)
    finally:
        arena.close()
    return arena.breaches


def attempt(function, *args):
    """(what it returned, None), or (None, why there is nothing to judge)."""
    try:
        return function(*args), None
    except arenas.Cannot as why:
        return None, why
    except arenas.Inconclusive as why:
        return None, f"inconclusive: {why}"
    except Exception:  # pylint: disable=broad-except
        return None, traceback.format_exc()


class Report:
    def __init__(self, controls_only):
        self.controls_only = controls_only
        self.cannot = 0

    def skip(self, name, reason):
        self.cannot += 1
        print(f"SKIP-CANNOT: {name}: {reason}", file=sys.stderr)

    def group(self, group, control, sandbox):
        modes = [("control", control)] + ([] if self.controls_only else [("sandbox", sandbox)])
        for mode, (_, why) in modes:
            if why:
                tap.check(False, f"{group.name} ({mode})", str(why).splitlines())
                return
        lines_out = control[0][0]
        lines_in, breaches = ({}, []) if self.controls_only else sandbox[0]
        for act in group.acts:
            name = f"{act.case} {act.words}"
            outside, inside = lines_out.get(act, ""), lines_in.get(act, "")
            if act.abi > arenas.LANDLOCK:
                self.skip(name, f"needs version {act.abi} of Landlock")
            elif not self.controls_only and not act.ends and not inside.startswith("held"):
                tap.check(False, name, [inside or "the tool says nothing of it"])
            elif outside.startswith("BREACH"):
                tap.check(True, name)
            elif outside.startswith("held") and act.root and not arenas.ROOT:
                self.skip(name, acts.NO_ROOT)
            elif outside.startswith("held") and act.cannot:
                self.skip(name, f"{act.cannot} ({outside.rsplit(': ', 1)[1]})")
            else:
                tap.check(False, f"{name}: the control does not succeed", [outside])
        if not self.controls_only:
            rest = [text for text in breaches if not text.startswith("BREACH")]
            tap.check_empty(rest, f"{group.name}: nothing has changed outside")

    def scenario(self, scenario, control, sandbox):
        name = f"{scenario.case} {scenario.title}"
        if not self.controls_only:
            breaches, why = sandbox
            if why and isinstance(why, arenas.Cannot):
                self.skip(name, why)
                return
            if why or breaches:
                tap.check(False, name, str(why or "").splitlines() + (breaches or []))
                return
        if scenario.control is not True:
            if scenario.control is None:  # not an attack
                breaches, why = control if self.controls_only else ([], None)
                if isinstance(why, arenas.Cannot):
                    self.skip(name, why)
                    return
                tap.check(not breaches and not why, name, [str(why)] + (breaches or []))
            else:
                self.skip(name, scenario.control)
            return
        breaches, why = control
        if isinstance(why, arenas.Cannot):
            self.skip(name, why)
        elif scenario.root and not arenas.ROOT and not breaches:
            self.skip(name, acts.NO_ROOT)
        elif why:
            tap.check(False, f"{name} (control)", str(why).splitlines())
        else:
            tap.check(breaches, f"{name}" if breaches else f"{name}: the control is harmless")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--controls", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    only = re.compile(options.only)
    report = Report(options.controls)
    groups = [group for group in acts.GROUPS if only.search(group.name)]
    cases = [
        case for case in scenarios.ALL if only.search(f"{case.case} {case.title}")
    ]

    def tried(case):
        """Without a sandbox. What must go on working is run there to test the test."""
        return case.control is True or (case.control is None and options.controls)

    def both(pool, function, what, control=True):
        idle = concurrent.futures.Future()
        idle.set_result(((None, None)))
        return (
            pool.submit(attempt, function, what, "control") if control else idle,
            idle if options.controls else pool.submit(attempt, function, what, "sandbox"),
        )

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        waiting = [(report.group, group, both(pool, run_group, group)) for group in groups]
        waiting += [
            (report.scenario, case, both(pool, run_scenario, case, tried(case)))
            for case in cases
            if not case.alone
        ]
        for judge, what, futures in waiting:
            judge(what, *(future.result() for future in futures))
    # What measures time or fills memory is not disturbed by the others.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for case in cases:
            if case.alone:
                futures = both(pool, run_scenario, case, tried(case))
                report.scenario(case, *(future.result() for future in futures))
    print(f"# {sum(len(g.acts) for g in groups)} acts, {len(cases)} scenarios, "
          f"{report.cannot} cannot be judged here")
    tap.finish()


if __name__ == "__main__":
    main()
