"""Runs lm-eval on sentences of our own (lm_eval/), for the checks that compare what it finds."""

import glob
import json
import os
import subprocess
import sys
from pathlib import Path

WORK = Path(os.environ["NJOULE_CHECK_WORK"])
TASKS = Path(__file__).with_name("lm_eval")
ROWS = [json.loads(line) for line in (TASKS / "sentences.jsonl").read_text().splitlines()]
CHOICE, GENERATE, PERPLEXITY = NAMES = ("sentences_choice", "sentences_generate", "sentences_perplexity")


class Run:
    """All tasks by one of lm-eval's models; what it found is kept in a directory of this name."""

    def __init__(self, name, model, arguments):
        self.out = WORK / name
        subprocess.run(
            [str(Path(sys.executable).with_name("lm_eval")), "run", "--model", model, "--model_args", arguments, "--tasks", ",".join(NAMES),
             "--include_path", str(TASKS), "--batch_size", "1", "--output_path", str(self.out), "--log_samples"],
            # Its tasks name their file as one beside them.
            check=True, cwd=TASKS,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(WORK / "hf")})

    def samples(self, task):
        found = [json.loads(line) for line in open(self._one(f"samples_{task}_*.jsonl"))]
        assert len(found) == len(ROWS), (task, len(found))
        return sorted(found, key=lambda sample: sample["doc_id"])

    def figures(self):
        """Accuracy, exact matches, perplexity per word."""
        results = json.load(open(self._one("results_*.json")))["results"]
        figures = [results[CHOICE]["acc,none"], results[GENERATE]["exact_match,none"], results[PERPLEXITY]["word_perplexity,none"]]
        assert 0 <= figures[0] <= 1 and 0 <= figures[1] <= 1 and figures[2] > 1, figures
        return figures

    def _one(self, pattern):
        (path,) = glob.glob(str(self.out / "**" / pattern), recursive=True)
        return path


def number(answer):
    """A log-likelihood, alone or beside whether it is the greedy one."""
    return float(answer[0] if isinstance(answer, list) else answer)
