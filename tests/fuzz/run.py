"""Runs a target and judges it: a declared error or none, within its time and memory. `python -m tests.fuzz.run --seconds 60`.

With atheris installed (the extra `fuzz`) inputs are led by coverage, each target in a child of its own; without it, or with
`--engine own`, they are this folder's seeded mutations. A fault is printed with the input that makes it, and the status is 1.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import logging
import random
import subprocess
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz.mutations import LONGEST, mutated
from tests.support.memory import forget_peak, peak

SECONDS_MAX = 2.0
"""Processor seconds that one input may take."""
MEMORY_MAX = 512 << 20
"""Bytes that this process may have grown by."""
LOOKS = 8
"""Inputs between two looks at memory: its peak is kept by the kernel."""


class Fault(Exception):
    """What a target did with an input that it may not do."""


class Judge:
    """One target under watch."""

    def __init__(self, name: str) -> None:
        from tests.fuzz.targets import TARGETS

        self.name, self.target = name, TARGETS[name]
        gc.collect()  # what goes meanwhile would hide what comes
        self.before, self.taken, self.inputs = forget_peak(), 0, 0

    def __call__(self, data: bytes) -> None:
        """Raises Fault."""
        begun = time.process_time()
        self.inputs += 1
        try:
            self.target.call(data[:LONGEST])
            self.taken += 1
        except self.target.raises:
            pass
        except Exception as error:
            raise Fault(f"{self.name}: {type(error).__name__}: {error}\n{''.join(traceback.format_tb(error.__traceback__)[-2:])}"
                        f"input ({len(data)} bytes): {data[:400]!r}") from error
        if time.process_time() - begun > SECONDS_MAX:
            raise Fault(f"{self.name}: more than {SECONDS_MAX} s for {len(data)} bytes: {data[:400]!r}")
        if self.inputs % LOOKS == 0 and peak() - self.before > MEMORY_MAX:
            raise Fault(f"{self.name}: more than {MEMORY_MAX} bytes of memory: {data[:400]!r}")


def own(name: str, seconds: float, seed: int) -> Judge:
    """Our own mutations for a while. The seeds themselves come first. Raises Fault."""
    judge, dice = Judge(name), random.Random(f"{seed} {name}")
    for body in judge.target.seeds:
        judge(body)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        judge(mutated(dice, judge.target.seeds, judge.target.words))
    return judge


def led(name: str, seconds: float, seed: int, folder: Path) -> None:
    """Atheris on one target: does not return. It needs to see our modules while they are loaded."""
    import atheris

    with atheris.instrument_imports(include=["agents", "api", "bus", "schema", "oslo_utils"]):
        judge = Judge(name)
    folder.mkdir(parents=True, exist_ok=True)
    for number, body in enumerate(judge.target.seeds):
        (folder / f"seed{number}").write_bytes(body)
    atheris.Setup([sys.argv[0], f"-max_total_time={max(1, int(seconds))}", f"-seed={seed}", f"-max_len={LONGEST}", "-len_control=0",
                   "-rss_limit_mb=1024", f"-artifact_prefix={folder}/", "-print_final_stats=1", str(folder)], judge)
    atheris.Fuzz()


def main() -> int:
    """All targets, or one; the seconds are shared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("atheris", "own"), default="atheris" if importlib.util.find_spec("atheris") else "own")
    parser.add_argument("--target", default="")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"))
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the inspectors log each finding
    if asked.engine == "atheris" and asked.target:
        led(asked.target, asked.seconds, asked.seed, asked.corpus / asked.target.replace(" ", "-"))
    from tests.fuzz.targets import TARGETS

    names, faults = [asked.target] if asked.target else list(TARGETS), 0
    for name in names:
        share = asked.seconds / len(names)
        if asked.engine == "atheris":
            done = subprocess.run([sys.executable, "-m", "tests.fuzz.run", "--engine", "atheris", "--target", name, "--seconds", str(share), "--seed", str(asked.seed),
                                   "--corpus", str(asked.corpus)], capture_output=True, text=True, errors="replace")
            runs = next((line.split(":")[-1].strip() for line in done.stderr.splitlines() if "number_of_executed_units" in line), "?")
            print(f"{name}: {runs} inputs, atheris{'' if done.returncode == 0 else ': FAULT'}", flush=True)
            if done.returncode:
                print(done.stdout[-4000:], done.stderr[-4000:])
                faults += 1
            continue
        try:
            judge = own(name, share, asked.seed)
            print(f"{name}: {judge.inputs} inputs, {judge.taken} taken", flush=True)
        except Fault as fault:
            print(f"FAULT {fault}", flush=True)
            faults += 1
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
