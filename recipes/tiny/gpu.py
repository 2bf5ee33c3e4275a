"""The embedded policy trained in one go within so many minutes: python recipes/tiny/gpu.py OUT MINUTES; see gpu.sh.

Stages in order, each with its share of the time: pairs drawn on all cores, their evidence (in batches on an accelerator),
comparer, cold start, reinforcement; what came of the last two is evaluated on held-out pairs. Each stage's result is a line of
OUT/result.jsonl as soon as it is there. A stage that fails is a line with its reason, and the next one goes on with what there
is. OUT/model is updated after each stage and each checkpoint. The same command goes on with a run that was stopped.
"""

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from differad.files import atomic_write
from differad.locators.threads import usable_cores
from differad.training.provenance import complete_checkpoints

HERE = Path(__file__).resolve().parent
# Shares of the time; what is left over is for starting and for writing.
SHARES = {"pairs": 0.2, "evidence": 0.26, "compare": 0.06, "sft": 0.25, "rl": 0.1, "evaluate": 0.05}
TRAINED = ("small_siblings", "siblings", "same", "large", "natural", "unaligned")
FRESH = ("fresh", "fresh_unaligned")
SETS = ("held_out", *TRAINED, *FRESH)
# Held-out pairs for each minute of the run, 400 at most: about half a second of a core each.
HELD_OUT_PER_MINUTE = 30
# A stage may take this share of all the time beyond its own, for loading and writing, and at least so many seconds.
GRACE, LEAST_GRACE = 0.05, 25.0
# Seconds in which the process that trains must have loaded its libraries.
STARTING = 180.0
# Megabytes of a loader's process in shared memory: three batches of 128 pairs of evidence.
_LOADER_MB = 300
# More of them are no faster than the step: each gives some 250 pairs a second.
MOST_LOADERS = 8
_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "model.safetensors",
    "run_info.json",
)


class StageError(Exception):
    """Why a stage did not give what it should."""


class Trainer:
    """The process of gpu_stages.py; one that has ended is started again."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self._log, self._environment = log, environment
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self.machine: dict[str, Any] | None = None

    def start(self) -> None:
        """Begin to load what training needs; does not wait."""
        if self._process is not None and self._process.poll() is None:
            return
        self.machine, self._answers = None, queue.Queue()
        with self._log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "gpu_stages.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                env=self._environment,
                start_new_session=True,
            )
        threading.Thread(target=_pass_on, args=(self._process.stdout, self._answers), daemon=True).start()

    def ask(self, order: dict[str, Any], seconds: float, meanwhile: Any = None) -> dict[str, Any]:
        """What a stage found; `meanwhile` is called twice a second. Raises StageError, also after so many seconds."""
        self.start()
        if self.machine is None:
            self.machine = self._answer(time.monotonic() + STARTING, None)
        until = time.monotonic() + seconds
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(json.dumps(order) + "\n")
        return self._answer(until, meanwhile)

    def end(self) -> None:
        """End the process and all that it started."""
        if self._process is not None:
            end(self._process)

    def _answer(self, until: float, meanwhile: Any) -> dict[str, Any]:
        while time.monotonic() < until:
            try:
                line = self._answers.get(timeout=0.5)
            except queue.Empty:
                if meanwhile is not None:
                    meanwhile()
                continue
            if line is None:
                code = self._process.wait() if self._process is not None else None
                raise StageError(f"the process ended with {code}: {last_line(self._log)}")
            answer = json.loads(line)
            if "error" in answer:
                raise StageError(str(answer["error"]))
            return dict(answer["found"])
        self.end()
        raise StageError("out of time")


class Run:
    """One run in a folder: stages, their rows, the model as it is."""

    def __init__(self, out: Path, minutes: float, workers: int, overrides: Iterable[str]) -> None:
        self.out, self.seconds, self.workers = out.resolve(), 60 * minutes, workers
        self.began = time.monotonic()
        self._overrides = tuple(overrides)
        self.data, self.runs, self.back = (self.out / name for name in ("data", "runs", "back"))
        for folder in (self.data, self.runs, self.back, self.out / "model"):
            folder.mkdir(parents=True, exist_ok=True)
        self.log = self.out / "log.txt"
        self._environment = environment()
        self.trainer = Trainer(self.log, self._environment)
        self._published: Path | None = None
        self._others: list[subprocess.Popen[Any]] = []
        self.rows: list[dict[str, Any]] = [
            {"stage": "run", "minutes": minutes, "workers": workers, "wall_seconds": 0.0}
        ]
        self._done = finished(self.out / "result.jsonl", self.rows[0])

    def go(self) -> bool:
        """All stages; whether there is a model. No process outlives it."""
        try:
            self._go()
        finally:
            self.trainer.end()
            for process in self._others:
                end(process)
            self.write()
        return (self.out / "model" / "model.safetensors").is_file()

    def _go(self) -> None:
        self.trainer.start()
        self.stage("pairs", self.draw)
        self.stage("evidence", self.evidence)
        self.stage("compare", lambda: self.train("compare", "sft", ()))
        comparer = self.policy("compare")
        own = (f"model.tiny.comparer={comparer or 'null'}", f"model.tiny.reading={self.reading()}")
        self.stage("sft", lambda: self.train("sft", "sft", own))
        evaluated = self.start_evaluation("sft")
        self.stage("rl", self.reinforce)
        self.stage("evaluate sft", lambda: self.evaluated(evaluated))
        self.stage("evaluate rl", lambda: self.evaluated(self.start_evaluation("rl")))

    def stage(self, name: str, perform: Any) -> None:
        """Perform a stage unless it is done; its row, or the reason that it has none, is written at once."""
        if name in self._done:
            self.rows.append(self._done[name])
            return
        began = time.monotonic()
        print(f"gpu: {name}", flush=True)
        row: dict[str, Any] = {"stage": name}
        try:
            row |= perform()
        except StageError as error:
            row["failed"] = str(error)
        row["wall_seconds"] = round(time.monotonic() - began, 2)
        self.rows.append(row)
        print(f"gpu: {json.dumps(row)}", flush=True)
        self.write()

    def budget(self, name: str) -> float:
        """Seconds of a stage: its share, or what is left of it beside the shares of later ones, but not under a third."""
        own = SHARES[name] * self.seconds
        names = list(SHARES)
        later = sum(SHARES[other] for other in names[names.index(name) + 1 :]) * self.seconds
        left = self.seconds - (time.monotonic() - self.began)
        return max(own / 3, min(own, left - later))

    def grace(self) -> float:
        """Seconds that a stage may take beyond its own."""
        return max(LEAST_GRACE, GRACE * self.seconds)

    def draw(self) -> dict[str, Any]:
        """Pairs of all sets, side by side."""
        before, began = self.count(), time.monotonic()
        seconds = self.budget("pairs")
        given = {**self._environment, "MINUTES": f"{seconds / 60:.4f}", "PYTHON": sys.executable}
        command = ["bash", str(HERE / "data.sh"), str(self.data), str(self.workers)]
        with self.log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=given, start_new_session=True)
        self._others.append(process)
        try:
            # All sets are started side by side, and each draws something whatever the time.
            code = process.wait(timeout=seconds + self.grace() * max(1.0, len(SETS) / self.workers))
        except subprocess.TimeoutExpired:
            end(process)
            code = 0
        pairs = self.count()
        if code or not pairs:
            raise StageError(f"data.sh ended with {code} and {pairs} pairs: {last_line(self.log)}")
        took = time.monotonic() - began
        return {
            "pairs": pairs,
            "drawn": pairs - before,
            "pairs_per_s": round((pairs - before) / took, 2),
            "workers": self.workers,
        }

    def count(self) -> int:
        """Pairs that are drawn."""
        return sum(count_lines(path) for path in self.data.glob("*/pairs.jsonl"))

    def manifests(self, names: Iterable[str]) -> list[str]:
        """The sets of these names that have pairs. Raises StageError where there are none."""
        found = [self.data / name / "pairs.jsonl" for name in names]
        found = [path for path in found if path.is_file() and count_lines(path)]
        if not found:
            raise StageError(f"{self.data}: no pairs to train on")
        return [str(path) for path in found]

    def evidence(self) -> dict[str, Any]:
        """Evidence of all pairs that are trained on; on the cores alone where the accelerator fails."""
        pairs = self.manifests((*TRAINED, *FRESH))
        seconds = self.budget("evidence")
        order = {
            "stage": "evidence",
            "recipe": str(HERE / "compare.yaml"),
            "overrides": [*self.given(pairs), *self._overrides],
            "workers": self.workers,
            "minutes": seconds / 60,
            "device": "auto",
        }
        try:
            found = self.trainer.ask(order, seconds + self.grace())
        except StageError as error:
            found = self.trainer.ask({**order, "device": "cpu"}, seconds + self.grace()) | {"at_first": str(error)}
        machine = self.trainer.machine or {}
        return {**found, "computed_on": found["device"], **machine}

    def given(self, pairs: list[str]) -> list[str]:
        """What every recipe is told of the data."""
        return [f"data.pairs=[{','.join(pairs)}]", f"data.evidence={self.data / 'evidence'}", "held_out.pairs=[]"]

    def train(self, name: str, phase: str, more: Iterable[str]) -> dict[str, Any]:
        """A recipe for its share of the time; the model is published with every checkpoint."""
        seconds = self.budget(name)
        loaders = self.loaders() if phase == "sft" else min(4, self.loaders())
        overrides = [
            *self.given(self.manifests(FRESH if phase == "rl" else TRAINED)),
            f"out={self.runs / name}",
            f"train.minutes={seconds / 60:.4f}",
            "train.batch_size=128",
            f"train.workers={loaders}",
            "train.steps=-1",
            "train.epochs=1000",
            f"train.save_every={100 if phase == 'sft' else 20}",
            "train.log_every=5",
            "train.report_to=[]",
            *(["train.more={dataloader_persistent_workers: true}"] if loaders else []),
            *more,
            *self._overrides,
        ]
        order = {"stage": phase, "recipe": str(HERE / f"{name}.yaml"), "overrides": overrides}
        try:
            return self.trainer.ask(order, seconds + self.grace(), lambda: self.publish(name))
        finally:
            self.publish(name)

    def reading(self) -> int:
        """steps of box pretraining: what a third of the cold start's time allows, 400 at most."""
        on_cpu = str((self.trainer.machine or {}).get("device", "CPU")).startswith("CPU")
        return max(5, min(400, int(SHARES["sft"] * self.seconds / 3 / (0.25 if on_cpu else 0.03))))

    def reinforce(self) -> dict[str, Any]:
        """Reinforcement of the cold start, or of its last checkpoint."""
        start = self.policy("sft")
        if start is None:
            raise StageError("no cold start to reinforce")
        return self.train("rl", "rl", (f"model.checkpoint={start}",))

    def policy(self, name: str) -> Path | None:
        """The newest whole policy of a run: what it left at its end, or its last checkpoint."""
        final = self.runs / name / "model"
        folders = [final] if (final / "run_info.json").is_file() else complete_checkpoints(self.runs / name)[-1:]
        return folders[0] if folders else None

    def loaders(self) -> int:
        """Processes that load batches: a core is left for the trainer, and batches must fit into shared memory."""
        shared = Path("/dev/shm")
        room = shutil.disk_usage(shared).free / 2**20 / _LOADER_MB if shared.is_dir() else self.workers
        return max(0, min(MOST_LOADERS, self.workers - 1, int(room)))

    def publish(self, name: str) -> None:
        """Make the newest policy of a run OUT/model: its weights come last but for where they are from."""
        newest = self.policy(name)
        if newest is None or newest == self._published:
            return
        self._published = newest
        for file in _MODEL_FILES:
            source = newest / file
            if source.is_file():
                with atomic_write(self.out / "model" / file) as fresh:
                    shutil.copyfile(source, fresh)
        self.write()

    def start_evaluation(self, name: str) -> "subprocess.Popen[str] | None":
        """Begin to evaluate a run's policy on held-out pairs; None where there is no policy."""
        model, manifest = self.policy(name), self.data / "held_out" / "pairs.jsonl"
        if model is None or not manifest.is_file() or not count_lines(manifest) or f"evaluate {name}" in self._done:
            return None
        limit = max(16, min(400, round(HELD_OUT_PER_MINUTE * self.seconds / 60)))
        # It runs beside reinforcement, which needs one core at once.
        polite = ["nice", "-n", "10"] if shutil.which("nice") else []
        command = [*polite, sys.executable, str(HERE / "gpu_stages.py"), str(model), str(manifest)]
        command += [str(self.runs / name / "held_out"), str(limit), str(self.workers)]
        with self.log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment, start_new_session=True
            )
        self._others.append(process)
        return process

    def evaluated(self, process: "subprocess.Popen[str] | None") -> dict[str, Any]:
        """The figures of an evaluation that was begun."""
        if process is None:
            raise StageError("no policy to evaluate, or no held-out pairs")
        try:
            text, _ = process.communicate(timeout=self.budget("evaluate") + self.grace())
        except subprocess.TimeoutExpired:
            end(process)
            raise StageError("out of time") from None
        if process.returncode:
            raise StageError(f"the process ended with {process.returncode}: {last_line(self.log)}")
        return dict(json.loads(text.splitlines()[-1]))

    def write(self) -> None:
        """Results so far, and OUT/back."""
        texts = {"result.jsonl": "".join(f"{json.dumps(row)}\n" for row in self.rows), "result.md": table(self.rows)}
        texts["curves.jsonl"] = "".join(curve(self.runs / name, name) for name in ("compare", "sft", "rl"))
        for name, text in texts.items():
            with atomic_write(self.out / name) as fresh:
                fresh.write_text(text, encoding="utf-8")
            shutil.copyfile(self.out / name, self.back / name)
        if self.log.exists():
            (self.back / "log.txt").write_bytes(self.log.read_bytes()[-(8 << 20) :])
        if (self.out / "model" / "model.safetensors").is_file():
            with atomic_write(self.back / "model.tar") as fresh, tarfile.open(fresh, "w") as archive:
                archive.add(self.out / "model", "model")


def _pass_on(lines: Any, answers: "queue.Queue[str | None]") -> None:
    for line in lines:
        answers.put(line)
    answers.put(None)


def end(process: "subprocess.Popen[Any]") -> None:
    """End a process that leads a session, and all in it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment() -> dict[str, str]:
    """What every process of a run is told: its weights are so small that more threads would only get in each other's way."""
    own = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**own, **os.environ}


def finished(results: Path, run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of an earlier run of the same time on as many cores, by stage; failed ones are tried again."""
    if not results.is_file():
        return {}
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return {row["stage"]: row for row in rows[1:] if "failed" not in row} if rows[:1] == [run] else {}


def count_lines(path: Path) -> int:
    """Whole lines of a file."""
    return path.read_bytes().count(b"\n")


def last_line(log: Path) -> str:
    """What was said last."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing was said"


def curve(run: Path, name: str) -> str:
    """What a run logged, each line with the run's name."""
    path = run / "curves.jsonl"
    if not path.is_file():
        return ""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return "".join(json.dumps({"run": name, **json.loads(line)}) + "\n" for line in lines)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = ["| stage | seconds | result |", "|---|---|---|"]
    for row in rows:
        others = [
            f"{name} {value}"
            for name, value in row.items()
            if name not in ("stage", "wall_seconds") and value is not None
        ]
        lines.append(f"| {row['stage']} | {row['wall_seconds']} | {', '.join(others)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line and run; the exit status is 1 where no model came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("minutes", type=float)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for all recipes, as train.batch_size=32")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="cores to use (all)")
    arguments = parser.parse_args()
    if arguments.minutes <= 0 or arguments.workers < 1:
        parser.error("MINUTES and --workers: expected more than 0")
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # as `timeout` sends it: what is done is written, nothing lives on
    run = Run(arguments.out, arguments.minutes, arguments.workers, arguments.overrides)
    sys.exit(0 if run.go() else 1)


if __name__ == "__main__":
    main()
