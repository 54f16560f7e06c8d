"""Is the evaluation path still as fast as it should be? Ratios, which unlike seconds mean the same on any machine.

Each line measures ours and the plain loop in turn (`bbt bench`) and prints the speed-up beside its floor; the exit
code is 1 where a median falls below. Two minutes on two CPU cores that nothing else uses.
"""

import sys

from backends.bench import Workload, measure

FLOORS = {
    "masked LM, fp32": (Workload("minilm-mlm", precision="fp32"), 2.0),
    "causal LM, fp32": (Workload("gpt2-mini", precision="fp32"), 2.5),
    "masked LM, deep prompts, fp32": (Workload("minilm-mlm", precision="fp32", deep=True), 2.5),
    "causal LM, deep prompts, fp32": (Workload("gpt2-mini", precision="fp32", deep=True), 2.5),
}
"""Same rows, same precision, population 20, 50 prompt tokens, 32 rows of SST-2, against one forward a candidate. The
floors are what the two bundled models should reach on any machine; larger models reach more (SPEED.md)."""


def main() -> int:
    missed = 0
    for name, (workload, floor) in FLOORS.items():
        against = measure(workload, "plain", plain_queries=1, repeats=2)["against"]
        median, low, high = against["speedup"]
        missed += median < floor
        difference = against["max_log_probability_difference"]
        print(
            f"{name:32} {median:5.2f}x ({low:.2f} to {high:.2f}), floor {floor}x; scores differ by {difference:.0e}",
            flush=True,
        )
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
