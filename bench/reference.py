#!/usr/bin/env python3
"""Runs one variant of one workload of a PyTorch reference script, alone in its process.

A reference script such as torch_bench.py measures all variants of a workload one after another,
so that the peak memory of one shows in the next. This driver imports the script unchanged and
replaces its `timeit` and `out`: all variants but the chosen one are built and not run. Called by
compare.py; the script's own numbers are printed as they are.

usage: reference.py SCRIPT list GROUP …          one JSON line per variant, nothing is measured
       reference.py SCRIPT run GROUP INDEX [--reps N] [--budget SECONDS]
       reference.py SCRIPT baseline              the memory of the interpreter with PyTorch loaded

Exit status: 0 done, 2 the script is not of this form.
"""

import argparse
import importlib.util
import json
import os
import resource
import sys


def load(path):
    """The script as a module; its main part does not run."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec = importlib.util.spec_from_file_location("reference_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("timeit", "out"):
        if not callable(getattr(module, name, None)):
            sys.exit(f"error: {path} has no function `{name}`: not of the form of torch_bench.py")
    return module


def group(module, name):
    """The function that runs a group."""
    function = getattr(module, "W", {}).get(name) or getattr(module, name, None)
    if not callable(function):
        sys.exit(f"error: the reference script has no workload `{name}`")
    return function


class Chosen:
    """Counts the calls of `timeit` and lets the chosen one through."""

    def __init__(self, module, index, limits):
        self.timeit, self.out = module.timeit, module.out
        self.index, self.limits, self.calls = index, limits, -1
        module.timeit, module.out = self.measure, self.report

    def measure(self, step, *args, **kwargs):
        self.calls += 1
        if self.calls == self.index:
            return self.timeit(step, *args, **{**kwargs, **self.limits})
        # Not zero: scripts divide by the time.
        return 1.0, 1.0, 0

    def report(self, name, result, **fields):
        if self.index is None:
            line = dict(index=self.calls, workload=name, fields=fields)
            print(json.dumps(line), flush=True)
        elif self.calls == self.index:
            self.out(name, result, **fields)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("script")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list").add_argument("groups", nargs="+")
    run = commands.add_parser("run")
    run.add_argument("group")
    run.add_argument("index", type=int)
    run.add_argument("--reps", type=int)
    run.add_argument("--budget", type=float)
    commands.add_parser("baseline")
    arguments = parser.parse_args()

    module = load(arguments.script)
    if arguments.command == "baseline":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        torch = sys.modules.get("torch")
        threads = torch.get_num_threads() if hasattr(torch, "get_num_threads") else None
        version = getattr(torch, "__version__", None)
        print(json.dumps(dict(peak_mb=peak, torch=version, threads=threads)))
    elif arguments.command == "list":
        for name in arguments.groups:
            Chosen(module, None, {})
            # Lines carry the group, which only this loop knows.
            chosen_out = module.out
            module.out = lambda w, r, name=name, out=chosen_out, **f: out(w, r, group=name, **f)
            group(module, name)()
    else:
        limits = dict(reps=arguments.reps, budget=arguments.budget)
        Chosen(module, arguments.index, {k: v for k, v in limits.items() if v is not None})
        group(module, arguments.group)()


if __name__ == "__main__":
    main()
