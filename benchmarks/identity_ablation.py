"""Train and score recipes × names × seeds side by side, into one table and one picture.

Run: python benchmarks/identity_ablation.py --model models/smollm2-135m-instruct --out out/ablation
Stopped at any moment, the same command goes on where it was.
"""

import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ablation.report import draw_frontier, table
from ablation.scoring import Places, run_cases
from ablation.variants import Case, Variant, load_variants

from assistant.settings import load_settings, near_names, one_line, run_command, write_text


@dataclass(frozen=True)
class Settings:
    model: Path
    """The base model's folder."""
    out: Path
    """results.jsonl (what is there is not done again), table.md, frontier.png; work/ holds the adapters."""
    variants: Path = Path(__file__).with_suffix(".toml")
    """The file that says what is compared."""
    only: list[str] = field(default_factory=list)
    """Labels of some variants; default: all."""
    names: list[str] = field(default_factory=list)
    """Names instead of the file's."""
    seeds: int = 0
    """Seeds of every variant instead of the file's."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Adapter scales at which each trained adapter is scored: the strength curve."""
    adapter: Path | None = None
    """Score this trained adapter alone; nothing is trained."""
    probes: Path | None = None
    """A probe file instead of the built-in questions."""
    workers: int = 1
    """Processes side by side on one machine, each with its share of the cores."""
    limit_seconds: float = 0.0
    """No case is begun after so many seconds; 0: no limit."""


def main(settings: Settings) -> None:
    names, variants = chosen(settings)
    places = Places(settings.model.resolve(), settings.out, settings.probes)
    if not (places.model / "config.json").is_file():
        raise ValueError(
            f"{settings.model} is no model folder; fetch one first: python scripts/fetch_model.py"
        )
    done = read_results(settings.out)
    refuse_older(done.values(), variants, settings.out)
    runs = [[case for case in run if case.key not in done] for run in runs_of(variants, names, settings)]
    say(f"{len(done)} cases are done, {sum(map(len, runs))} are to do in {settings.workers} processes")
    failed = work_off([run for run in runs if run], places, settings)
    report(settings.out, [variant.label for variant in variants])
    print((settings.out / "table.md").read_text(encoding="utf-8"))
    if failed:
        raise RuntimeError(f"{len(failed)} cases failed ({settings.out}/logs): {'; '.join(failed)}")


def chosen(settings: Settings) -> tuple[list[str], list[Variant]]:
    """Names and variants, as the file says and the flags change it."""
    names, variants = load_variants(settings.variants)
    if settings.adapter:
        names, variants = [name_of(settings.adapter)], [Variant("adapter", adapter=str(settings.adapter))]
    labels = [variant.label for variant in variants]
    for label in settings.only:
        if label not in labels:
            raise ValueError(f"--only {label!r}{near_names(label, labels)}")
    variants = [variant for variant in variants if not settings.only or variant.label in settings.only]
    if settings.names:
        names, variants = settings.names, [replace(variant, names=0) for variant in variants]
    if settings.seeds:
        variants = [replace(variant, seeds=settings.seeds) for variant in variants]
    return names, variants


def name_of(adapter: Path) -> str:
    """Whose name an adapter folder learnt. Raises ValueError when it keeps no card."""
    if name := load_settings(adapter).get("card", {}).get("name"):
        return str(name)
    raise ValueError(f"{adapter} keeps no card in its settings.toml; give a folder that train.py wrote")


def refuse_older(results: Iterable[dict[str, Any]], variants: list[Variant], out: Path) -> None:
    """Raises ValueError when a variant was changed since its results in `out` were made."""
    made_by = {variant.label: variant.made_by() for variant in variants}
    for result in results:
        label = result["variant"]
        if label in made_by and made_by[label] != result["made_by"]:
            raise ValueError(f"{label!r} has changed since its results in {out}; give a new --out or label")


def runs_of(variants: list[Variant], names: list[str], settings: Settings) -> Iterator[list[Case]]:
    """Each run's cases, the most telling first: all variants for the first name, then for the next."""
    for seed in range(max(variant.seeds for variant in variants)):
        for place, name in enumerate(names):
            for variant in variants:
                if seed < variant.seeds and place < (variant.names or len(names)):
                    scales = [1.0] if variant.system else settings.scales
                    yield [Case(variant, name, seed, scale) for scale in scales]


def work_off(runs: list[list[Case]], places: Places, settings: Settings) -> list[str]:
    """Hand out the runs until all are done or time is up; returns what failed, a sentence each."""
    start, waiting, failed = time.monotonic(), iter(runs), []
    under_way: dict[Future[None], str] = {}
    for name, value in worker_environment(settings.workers).items():
        os.environ.setdefault(name, value)
    with ProcessPoolExecutor(settings.workers, multiprocessing.get_context("spawn"), follow_parent) as pool:
        while True:
            is_late = settings.limit_seconds and time.monotonic() - start > settings.limit_seconds
            while not is_late and len(under_way) < settings.workers and (run := next(waiting, None)):
                under_way[pool.submit(run_cases, run, places)] = run[0].run
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                name, error = under_way.pop(future), future.exception()
                if error:
                    failed.append(f"{name}: {one_line(error)}")
                read_results(places.out)
                say(f"{time.monotonic() - start:6.0f} s  {name}{': failed' if error else ''}")
    if left := sum(1 for _ in waiting):
        say(f"time is up, {left} are left; the same command goes on with them")
    return failed


def follow_parent() -> None:
    """A process whose parent was killed ends too, and leaves the card to others."""

    def wait_for_its_end() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_its_end, daemon=True).start()


def worker_environment(workers: int) -> dict[str, str]:
    threads = str(max((os.cpu_count() or 1) // workers, 1))
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}


def read_results(out: Path) -> dict[str, dict[str, Any]]:
    """All results by key: of results.jsonl, and of cases/ that are not yet in it; these are added to it."""
    path = out / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    known = {entry["key"]: entry for entry in map(json.loads, lines)}
    single = {file.stem: file for file in sorted((out / "cases").glob("*.json"))}
    fresh = {
        key: json.loads(file.read_text(encoding="utf-8")) for key, file in single.items() if key not in known
    }
    if fresh:
        entries = (known | fresh).values()
        write_text(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
    return known | fresh


def report(out: Path, labels: list[str]) -> None:
    """table.md and frontier.png of all results there are, those of `labels` first and in this order."""
    results = sorted(read_results(out).values(), key=lambda r: (r["seed"], r["scale"]))
    order = list(dict.fromkeys([*labels, *(result["variant"] for result in results)]))
    by_label = {label: [r for r in results if r["variant"] == label] for label in order}
    by_label = {label: entries for label, entries in by_label.items() if entries}
    write_text(out / "table.md", table(by_label))
    if by_label:
        draw_frontier(by_label, out / "frontier.png")


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main, Settings)
