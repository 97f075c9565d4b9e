"""Sesqui and PyTorch in turn on one machine: every row several times on both sides, interleaved, one process each.

Writes a Markdown table and, beside it, every single measurement. The README in this folder says what is measured.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

# Work, shape, batch; what is compared on PyTorch's side beside its plain eager model.
ROWS = [
    ("train", "small-gpt", None),
    ("train", "arith-dag", None),
    ("train", "gpt2-small", None),
    ("decode", "small-gpt", 1),
    ("decode", "small-gpt", 8),
    ("decode", "small-gpt", 64),
    ("decode", "arith-dag", 1),
    ("decode", "arith-dag", 64),
    ("decode", "gpt2-small", 1),
    ("decode", "gpt2-small", 8),
    ("decode", "gpt2-small", 64),
    ("latent", "arith-dag", 1),
    ("latent", "arith-dag", 64),
    ("latent", "small-gpt", 1),
    ("latent", "small-gpt", 64),
    ("latent", "gpt2-small", 1),
    ("latent", "gpt2-small", 64),
]
SLOW = {"gpt2-small"}


def run(command: list[str], environment: dict[str, str]) -> dict:
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(out.stdout.strip().splitlines()[-1])


def spread(values: list[float]) -> str:
    digits = 0 if statistics.median(values) >= 100 else 2
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f}–{most:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", required=True, help="the built program, target/release/measure")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for table and rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variants", default="eager", help="of eager, compiled, transformers")
    parser.add_argument("--only", default="", help="rows whose text holds this, such as decode")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="on both sides")
    parser.add_argument("--skip-slow", action="store_true", help="leave the large shape out")
    arguments = parser.parse_args()

    if arguments.backend not in ("cpu", "cuda"):
        parser.error("--backend: PyTorch's side runs on cpu and cuda")
    device = "cuda" if arguments.backend == "cuda" else "cpu"
    flags = {
        "eager": [],
        "compiled": ["--compile"],
        "transformers": ["--implementation", "transformers"],
        "transformers, compiled": ["--implementation", "transformers", "--compile"],
    }
    variants = [name.strip() for name in arguments.variants.split(";")]
    threads = str(arguments.threads)
    narrow = ["--precision", "bf16"] if arguments.bf16 else []
    environment = os.environ | {
        "RAYON_NUM_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        "CI": "true",
    }
    script = str(pathlib.Path(__file__).with_name("pytorch.py"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines, measured = [], []
    header = ["work", "shape", "batch", "Sesqui, ms", "per second", "MB"]
    for name in variants:
        header += [f"PyTorch {name}, ms", "MB", "ratio"]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for work, shape, batch in ROWS:
        label = f"{work} {shape} {batch or ''}"
        if arguments.only not in label or (arguments.skip_slow and shape in SLOW):
            continue
        common = [work, "--shape", shape, "--repetitions", "2" if shape in SLOW else "5"]
        common += ["--batch", str(batch)] if batch else []
        ours, theirs = [], {name: [] for name in variants}
        for _ in range(arguments.rounds):
            ours.append(
                run([arguments.ours, *common, *narrow, "--backend", arguments.backend], environment)
            )
            for name in variants:
                command = [sys.executable, script, *common, "--threads", threads]
                command += ["--bf16"] if arguments.bf16 else []
                theirs[name].append(run([*command, "--device", device, *flags[name]], environment))
        times = lambda rows: [row["milliseconds_median"] for row in rows]
        memory = lambda rows: f"{statistics.median(row['peak_megabytes'] for row in rows):.0f}"
        cells = [work, shape, str(ours[0]["batch"]), spread(times(ours))]
        rate = statistics.median(row["per_second"] for row in ours)
        cells += [f"{rate:.0f} {ours[0]['unit']}", memory(ours)]
        for name in variants:
            # Both sides of a round ran within seconds of each other.
            ratios = [b / a for a, b in zip(times(ours), times(theirs[name]))]
            cells += [spread(times(theirs[name])), memory(theirs[name])]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
        measured.append({"row": label.strip(), "ours": ours, "theirs": theirs})
        table = arguments.out / "table.md"
        table.write_text("\n".join(lines) + "\n")
        (arguments.out / "rows.json").write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
