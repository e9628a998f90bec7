"""How near every backend comes to what the machine allows.

    python -m benchmarks.roofline [--rounds N] [--threads N] [--json FILE]

The default sampling must move some bytes: image and grid in, value out; in the backward pass image, grid and the
value's gradient in, the gradients out. And it must read texels in both passes: four where nothing shrinks, else at most
four for each of nine points of a value and sixteen of its slope, and no more than the area of the output pixel and the
bilinear reads at its rim touch. The benchmark measures at which rates the CPU copies memory, and loads vectors of four
floats, which hold up to four channels of a texel, from random places of a cached table. Each rate gives a time that the
sampling cannot beat. The longer of the two is the bound, and stands beside the measured time. A C compiler is needed.
"""

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import peers
from benchmarks.commands import timing_parser
from benchmarks.results import report
from benchmarks.speed import CASES, SETTINGS, Case, Sampler, backends_here, linearized, measure

COLUMNS = ("B,C,H,W,h,w x covered", "MB", "million loads", "move, ms", "load, ms", "bound, ms")
GATHER = """
typedef float texel __attribute__((vector_size(16)));
void gather(const texel *table, const int *places, long count, texel *sum)
{
    texel a = {0}, b = {0}, c = {0}, d = {0};
    for (long i = 0; i + 4 <= count; i += 4) {
        a += table[places[i]];
        b += table[places[i + 1]];
        c += table[places[i + 2]];
        d += table[places[i + 3]];
    }
    *sum = a + b + c + d;
}
"""


def main() -> None:
    options = timing_parser(__doc__, rounds=15).parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")

    copied, gathered = copy_rate(), gather_rate(options.threads)
    samplers: dict[str, Sampler] = {"bilinear": peers.bilinear}
    samplers |= {f"default, {b}": linearized(SETTINGS["default"], b) for b in backends_here(device)}
    rows, raw = [], []
    for case in tqdm(CASES, desc="roofline", unit="size"):
        measured = measure(case, samplers, options.rounds, device)
        moved, loads = bytes_moved(case), texels_loaded(case)
        move, load = 1e3 * moved / copied, 1e3 * loads / gathered
        bound = max(move, load)
        cells = [f"{moved / 1e6:.1f}", f"{loads / 1e6:.1f}", *(f"{ms:.2f}" for ms in (move, load, bound))]
        cells += [f"{measured[0]['both_ms']:.2f}"]
        cells += [f"{row['both_ms']:.2f} ({bound / row['both_ms']:.0%})" for row in measured[1:]]
        rows.append([measured[0]["size"], *cells])
        raw.append({"bytes": moved, "loads": loads, "move_ms": move, "load_ms": load, "measured": measured})
    what = (
        "Bytes that the default must move, forward and backward, and the loads of four floats that read its texels, "
        "which are no more than an output pixel's area touches; the times these take at the rates measured here, "
        f"{copied / 1e9:.1f} GB/s copied (read and written) and {gathered / 1e9:.2f} billion loads per second; and the "
        "times measured, in brackets the share of the bound in them. Not counted: arithmetic, page faults of fresh "
        "memory, what a call costs by itself."
    )
    report(options.json, "Roofline", what, (*COLUMNS, *samplers), rows, raw)


def bytes_moved(case: Case) -> int:
    """The bytes of all tensors in float32, each moved once, forward and backward."""
    B, C, H, W, h, w, _, image_gradient = case
    image, grid, value = B * C * H * W, 2 * B * h * w, B * C * h * w
    forward = image + grid + value
    backward = image + grid + value + grid + (2 * image if image_gradient else 0)
    return 4 * (forward + backward)


def texels_loaded(case: Case) -> int:
    """The loads of four floats: the texels of each output pixel in both passes, once for every four channels.

    A texel that gets a gradient is loaded once more, to add to it. Pixels that shrink although the view as a whole does
    not are not counted.
    """
    B, C, H, W, h, w, covered, image_gradient = case
    rows, columns = covered * H / h, covered * W / w
    touched = (int(rows) + 2) * (int(columns) + 2) if min(rows, columns) > 1 else 4
    of_value, of_slope = min(4 * 9, touched), min(4 * 16, touched)
    loads = of_value + of_slope + (of_value if image_gradient else 0)
    return loads * B * h * w * -(-C // 4)


def copy_rate() -> float:
    """How many bytes a second are read and written when a buffer too large for a cache is copied."""
    source, destination = torch.zeros(2, 1 << 26)
    return 2 * source.nbytes / _seconds(lambda: destination.copy_(source))


def gather_rate(threads: int) -> float:
    """How many vectors of four floats a second are loaded from random places of a table of 40 kB, by all threads."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "gather.c", Path(folder) / "gather.so"
        source.write_text(GATHER)
        subprocess.run(["cc", "-O3", "-shared", "-fPIC", source, "-o", library], check=True)
        gather = ctypes.CDLL(str(library)).gather  # ctypes releases the interpreter's lock
    table, sums = torch.rand(2500, 4), torch.zeros(threads, 4)
    places = torch.randint(len(table), (1 << 20,), dtype=torch.int32)
    arguments = ctypes.c_void_p(table.data_ptr()), ctypes.c_void_p(places.data_ptr()), ctypes.c_long(len(places))

    def run() -> None:
        list(pool.map(lambda out: gather(*arguments, ctypes.c_void_p(out.data_ptr())), sums))

    with ThreadPoolExecutor(threads) as pool:
        return threads * len(places) / _seconds(run)


def _seconds(run: Callable[[], object]) -> float:
    """The shortest time of thirty runs, since a rate is the best that the machine can do."""
    times = []
    for _ in range(30):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
