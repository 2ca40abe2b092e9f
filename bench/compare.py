#!/usr/bin/env python3
"""Runs PyTorch and entrenar on the same workloads in turn and compares them as ratios.

    cargo build --release -p entrenar-bench
    python bench/compare.py                      # every workload of goals.json
    python bench/compare.py mlp gpt_small --rounds 5

For each workload, each round runs every variant of both sides once, each in a process of its own.
A side's time is the median over the rounds of the medians that its processes report; its minimum
and its peak memory are the smallest time and the largest memory over all of them. Ratios are
entrenar divided by PyTorch: below 1 is faster. `goals.json` has the ratios to reach.

Peak memory is the whole process's. PyTorch's contains the interpreter with its libraries, so that
baseline stands beside it, and the ratio without both sides' baselines in brackets.

Exit status: 0 every goal that was checked is met, 1 a goal is missed, 2 nothing could be compared.
Only Python's standard library is used here; PyTorch is needed by the interpreter that --python
names. Trap: a process inherits the peak memory of the one that started it (Linux counts it through
fork and exec), so this script must stay small and never load PyTorch itself.
"""

import argparse
import fnmatch
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
DRIVER = os.path.join(HERE, "reference.py")


class Failure(Exception):
    """Nothing can be compared, for the reason given."""


# ---------------------------------------------------------------- running

def lines_of(command, what):
    """The JSON lines that a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = []
    for text in done.stdout.splitlines():
        if text.startswith("{"):
            found.append(json.loads(text))
    if done.returncode != 0 or not found:
        complaint = (done.stderr.strip() or done.stdout.strip())[-800:]
        raise Failure(f"{what} ended with status {done.returncode}: {complaint}")
    return found


class Reference:
    """PyTorch's side: a script of the form of torch_bench.py, one process per variant."""

    def __init__(self, python, script, limits):
        self.base = [python, DRIVER, script]
        self.limits = limits
        probe = subprocess.run([python, "-c", "import torch"], capture_output=True, text=True,
                               check=False)
        if probe.returncode != 0:
            raise Failure(
                f"{python} cannot load PyTorch ({probe.stderr.strip().splitlines()[-1]}).\n"
                "Install it into an environment outside this project (pip install torch) and name "
                "its interpreter: --python PATH. `--alone` measures entrenar without it.")
        if not os.path.exists(script):
            raise Failure(f"no reference script at {script}; name one with --reference PATH")
        self.about = lines_of(self.base + ["baseline"], "the reference script")[-1]

    def variants(self, groups):
        """What the script measures: {workload: [variant, …]}."""
        found = {}
        if not groups:
            return found
        for line in lines_of(self.base + ["list", *groups], "the list of reference workloads"):
            fields = line["fields"]
            name = fields.pop("group")
            variant = dict(label=label(fields), f32=is_plain(fields),
                           command=["run", name, str(line["index"])])
            found.setdefault(line["workload"], []).append(variant)
        return found

    def run(self, variant):
        command = self.base + variant["command"]
        for name, value in self.limits.items():
            command += [f"--{name}", str(value)]
        return lines_of(command, f"PyTorch, {' '.join(variant['command'])}")[-1]


def label(fields):
    """A short name of a variant: the switches that are on."""
    on = [k for k, v in fields.items() if v is True]
    on += [str(v) for k, v in fields.items() if k == "dtype"]
    return "+".join(on) or "eager"


def is_plain(fields):
    """Whether a variant is f32 eager."""
    return not any(v is True for v in fields.values()) and "bfloat16" not in str(fields.get("dtype"))


class Ours:
    """entrenar's side: the `bench` binary."""

    def __init__(self, binary, limits):
        if not os.access(binary, os.X_OK):
            raise Failure(f"no binary at {binary}: build it with `cargo build --release -p "
                          "entrenar-bench`, or name it with --entrenar PATH")
        self.binary, self.limits = binary, limits
        done = subprocess.run([binary, "--list"], capture_output=True, text=True, check=True)
        self.cases = [text.strip() for text in done.stdout.splitlines() if text.startswith("    ")]

    def variants(self, workload):
        """The variants of a workload: [(variant), …]."""
        found = []
        for case in self.cases:
            name, precision = case.rsplit(":", 1)
            if name == workload:
                found.append(dict(label=precision, f32=precision == "f32", command=["case", case]))
        return found

    def run(self, variant):
        command = [self.binary, *variant["command"]]
        for name, value in self.limits.items():
            command += [f"--{name}", str(value)]
        return lines_of(command, f"entrenar, {' '.join(variant['command'])}")[-1]


def measure(workload, ours, theirs, variants, rounds):
    """Runs all variants of a workload in turn; gives one record per variant."""
    records = [dict(side="entrenar", label=v["label"], f32=v["f32"], runs=[], variant=v, by=ours)
               for v in ours.variants(workload)]
    records += [dict(side="pytorch", label=v["label"], f32=v["f32"], runs=[], variant=v, by=theirs)
                for v in variants]
    for turn in range(rounds):
        # The side that begins changes, so that neither always finds the warmer machine.
        order = records if turn % 2 == 0 else records[::-1]
        for record in order:
            if turn > 0 and not worth_repeating(record, records):
                continue
            note(f"{workload} round {turn + 1}/{rounds} {record['side']} {record['label']}")
            line = record["by"].run(record["variant"])
            if "error" in line:
                raise Failure(f"{workload}, {record['side']} {record['label']}: {line['error']}")
            record["runs"].append({k: line.get(k) for k in ("median_s", "min_s", "n", "peak_mb",
                                                            "baseline_mb", "gflops")})
    for record in records:
        del record["variant"], record["by"]
    return records


def worth_repeating(record, records):
    """Variants that are neither f32 nor near their side's best are measured once."""
    if record["f32"]:
        return True
    best = min(time_of(r) for r in records if r["side"] == record["side"] and r["runs"])
    return time_of(record) <= 1.1 * best


def note(text):
    """Progress, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r{text:<78}\r", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- judging

def time_of(record):
    return statistics.median(run["median_s"] for run in record["runs"])


def summary(record):
    """What a table shows of one side."""
    medians = [run["median_s"] for run in record["runs"]]
    return dict(
        label=record["label"],
        median_s=statistics.median(medians),
        min_s=min(run["min_s"] for run in record["runs"]),
        spread=max(medians) / min(medians),
        peak_mb=max(run["peak_mb"] or 0 for run in record["runs"]),
        baseline_mb=max(run.get("baseline_mb") or 0 for run in record["runs"]),
        rounds=len(medians),
    )


def choose(records, side, against):
    """The record that a comparison is about: the f32 one, or the side's fastest."""
    of_side = [r for r in records if r["side"] == side and r["runs"]]
    if against == "f32":
        of_side = [r for r in of_side if r["f32"]]
    return min(of_side, key=time_of, default=None)


def rows_of(goal, records, torch_baseline):
    """One row per goal of a workload; without goals one plain row."""
    rows = []
    goals = goal.get("goals") or [dict(against="best")]
    if all(g["against"] != "f32" for g in goals) and len(records) > 2:
        goals = [dict(against="f32"), *goals]
    for g in goals:
        ours, theirs = (choose(records, side, g["against"]) for side in ("entrenar", "pytorch"))
        if ours is None:
            continue
        row = dict(workload=goal["workload"], against=g["against"], entrenar=summary(ours))
        if theirs is not None:
            row["pytorch"] = summary(theirs)
            row["pytorch"]["baseline_mb"] = torch_baseline
            judge(row, g, goal.get("memory"))
        rows.append(row)
    return rows


def judge(row, goal, memory_goal):
    """Ratios and verdicts of a row."""
    a, b = row["entrenar"], row["pytorch"]
    row["ratio"] = a["median_s"] / b["median_s"]
    row["ratio_min"] = a["min_s"] / b["min_s"]
    row["memory_ratio"] = a["peak_mb"] / b["peak_mb"] if b["peak_mb"] else None
    net = [max(s["peak_mb"] - (s["baseline_mb"] or 0), 1) for s in (a, b)]
    row["memory_ratio_net"] = net[0] / net[1]
    if "goal_s" in goal:
        row["goal"] = goal["goal_s"] / goal["pytorch_s"]
        strict = goal.get("strict", False)
        row["met"] = row["ratio"] < row["goal"] if strict else row["ratio"] <= row["goal"]
    if memory_goal is not None:
        row["memory_goal"] = memory_goal
        row["memory_met"] = (row["memory_ratio"] or 0) <= memory_goal


def verdict(row):
    """The last column."""
    words = []
    if "met" in row:
        over = 100 * (row["ratio"] / row["goal"] - 1)
        words.append("met" if row["met"] else f"MISSED by {over:.0f} %")
    if "memory_met" in row and not row["memory_met"]:
        over = 100 * (row["memory_ratio"] / row["memory_goal"] - 1)
        words.append(f"memory MISSED by {over:.0f} %")
    return ", ".join(words)


# ---------------------------------------------------------------- printing

def seconds(s):
    """A time with three digits."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if s * factor >= 1 or unit == "µs":
            return f"{s * factor:.3g} {unit}" if s * factor < 1000 else f"{s * factor:.0f} {unit}"
    return ""


HEADS = ("workload", "against", "PyTorch", "entrenar", "ratio", "goal", "of minima",
         "peak MiB PyTorch (idle)", "entrenar (idle)", "ratio (net)", "verdict")


def cells(row):
    a, b = row["entrenar"], row.get("pytorch")
    if b is None:
        return (row["workload"], row["against"], "–", f"{seconds(a['median_s'])} {a['label']}", "–",
                "–", "–", "–", f"{a['peak_mb']} ({a['baseline_mb']})", "–", "")

    def number(key):
        return f"{row[key]:.3f}" if row.get(key) is not None else "–"

    return (row["workload"], row["against"],
            f"{seconds(b['median_s'])} {b['label']}", f"{seconds(a['median_s'])} {a['label']}",
            number("ratio"), number("goal"), number("ratio_min"),
            f"{b['peak_mb']} ({b['baseline_mb']})", f"{a['peak_mb']} ({a['baseline_mb']})",
            f"{number('memory_ratio')} ({number('memory_ratio_net')})", verdict(row))


def table(rows):
    """A Markdown table, padded so that it reads well as it is."""
    lines = [HEADS, *[cells(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADS))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def closing(rows):
    """The last line, and whether every goal is met."""
    checks = [row[key] for row in rows for key in ("met", "memory_met") if key in row]
    return f"{sum(checks)} of {len(checks)} goals met", all(checks)


def picture(rows, about):
    """An SVG of the ratios on a logarithmic scale, with the goals as marks."""
    rows = [row for row in rows if "ratio" in row]
    left, width, step, top = 300, 560, 22, 56
    height = top + step * len(rows) + 40

    def place(ratio):
        return left + width * log_part(ratio)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 110}" '
           f'height="{height}" font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>',
           '<text x="10" y="20" font-size="15">entrenar / PyTorch, seconds per step '
           '(left of 1 is faster)</text>',
           f'<text x="10" y="38" fill="#555">{escape(about)}</text>']
    for mark in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5):
        x = place(mark)
        colour = "#333" if mark == 1 else "#ddd"
        out.append(f'<line x1="{x:.0f}" y1="{top - 8}" x2="{x:.0f}" y2="{height - 28}" '
                   f'stroke="{colour}"/>')
        out.append(f'<text x="{x:.0f}" y="{height - 12}" text-anchor="middle">{mark:g}</text>')
    for i, row in enumerate(rows):
        y = top + step * i
        colour = {True: "#2a7", False: "#c43", None: "#48c"}[row.get("met")]
        x = place(row["ratio"])
        name = f'{row["workload"]} ({row["against"]})'
        out.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        out.append(f'<rect x="{left}" y="{y + 2}" width="{max(x - left, 1):.0f}" height="12" '
                   f'fill="{colour}"/>')
        out.append(f'<text x="{x + 5:.0f}" y="{y + 12}">{row["ratio"]:.3f}</text>')
        if "goal" in row:
            g = place(row["goal"])
            out.append(f'<line x1="{g:.0f}" y1="{y - 1}" x2="{g:.0f}" y2="{y + 17}" '
                       'stroke="black" stroke-width="2"/>')
    out.append("</svg>")
    return "\n".join(out)


def log_part(ratio):
    """0 at 0.02, 1 at 5, by the logarithm."""
    ratio = min(max(ratio, 0.02), 5)
    return math.log(ratio / 0.02) / math.log(5 / 0.02)


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# ---------------------------------------------------------------- main

def machine():
    """What the numbers were measured on."""
    model = ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((l.split(":", 1)[1].strip() for l in file if l.startswith("model name")), "")
    except OSError:
        pass
    return dict(processor=model or platform.processor(), cores=os.cpu_count(),
                system=platform.platform())


def describe(result):
    m = result["machine"]
    torch = result["pytorch"].get("torch") if result["pytorch"] else None
    against = f"PyTorch {torch}" if torch else "without PyTorch"
    return f"{m['processor']}, {m['cores']} cores; {against}; {result['when']}"


def default_binary():
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    return os.path.join(target, "release", "bench")


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="Goals are ratios from goals.json. Build first: cargo build --release -p "
               "entrenar-bench.")
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD",
                        help="groups, workloads or patterns such as 'ew_*'; all without any")
    parser.add_argument("--reference", metavar="PATH",
                        default=os.path.join(ROOT, "..", "shared", "bench", "torch_bench.py"),
                        help="the PyTorch script (default: ../shared/bench/torch_bench.py beside "
                             "the workspace)")
    parser.add_argument("--python", metavar="PATH", default=sys.executable,
                        help="the interpreter that has PyTorch (default: this one)")
    parser.add_argument("--entrenar", metavar="PATH", default=default_binary(),
                        help="the bench binary (default: target/release/bench)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (default 3)")
    parser.add_argument("--reps", type=int, help="counted steps of a run, instead of the script's")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="limit of a run's counted part")
    parser.add_argument("--alone", action="store_true", help="run entrenar only")
    parser.add_argument("--skip", action="append", default=[], metavar="VARIANT",
                        help="leave out variants of PyTorch with this word, such as compile")
    parser.add_argument("--output", metavar="DIR", default=os.path.join(HERE, "results"),
                        help="where compare.json and compare.svg go (default: bench/results)")
    parser.add_argument("--from", dest="source", metavar="FILE",
                        help="judge the runs of an earlier compare.json again, measure nothing")
    return parser.parse_args()


def chosen_goals(patterns):
    """The workloads of goals.json that the patterns choose."""
    with open(os.path.join(HERE, "goals.json"), encoding="utf-8") as file:
        goals = json.load(file)["workloads"]
    if not patterns:
        return goals
    for pattern in patterns:
        if not any(fits(goal, pattern) for goal in goals):
            names = sorted({goal["group"] for goal in goals})
            raise Failure(f"no workload `{pattern}`; the groups are {', '.join(names)}")
    return [goal for goal in goals if any(fits(goal, p) for p in patterns)]


def fits(goal, pattern):
    return pattern == goal["group"] or fnmatch.fnmatch(goal["workload"], pattern)


def measure_all(options, goals):
    """Everything that was asked for, as the object that compare.json holds."""
    limits = {k: v for k, v in (("reps", options.reps), ("budget", options.budget)) if v is not None}
    ours = Ours(options.entrenar, limits)
    theirs = None if options.alone else Reference(options.python, options.reference, limits)
    groups = list(dict.fromkeys(goal["group"] for goal in goals))
    variants = theirs.variants(groups) if theirs else {}
    measured = {}
    for goal in goals:
        name = goal["workload"]
        list_of = [v for v in variants.get(name, [])
                   if not any(word in v["label"].split("+") for word in options.skip)]
        measured[name] = measure(name, ours, theirs, list_of, options.rounds)
    note("")
    return dict(machine=machine(), pytorch=theirs.about if theirs else None, rounds=options.rounds,
                when=time.strftime("%Y-%m-%d"), measured=measured)


def main():
    options = arguments()
    try:
        goals = chosen_goals(options.workloads)
        if options.source:
            with open(options.source, encoding="utf-8") as file:
                result = json.load(file)
            goals = [goal for goal in goals if goal["workload"] in result["measured"]]
        else:
            result = measure_all(options, goals)
    except (Failure, OSError, KeyError, json.JSONDecodeError) as problem:
        print(f"compare.py: {problem}", file=sys.stderr)
        return 2
    idle = (result["pytorch"] or {}).get("peak_mb")
    rows = [row for goal in goals
            for row in rows_of(goal, result["measured"][goal["workload"]], idle)]
    result["rows"] = rows
    print(describe(result))
    print(table(rows))
    line, good = closing(rows)
    print(line)
    os.makedirs(options.output, exist_ok=True)
    with open(os.path.join(options.output, "compare.json"), "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    with open(os.path.join(options.output, "compare.svg"), "w", encoding="utf-8") as file:
        file.write(picture(rows, describe(result)))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
